"""The folder of an evaluation's report; a disk that rejects the report costs no metrics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.config.command_schema import EvaluateConfig
from framework.config.shared_schema import PrecisionConfig
from framework.errors import ConfigError
from framework.evaluate import add_to_report, report_folder
from framework.runs.evaluation_data import describe_weights


def settings(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(run="x", split="test", precision=PrecisionConfig("fp32"), **changes)


def trained(folder: Path | None, examines_splits: bool = True, source: str = "runs/x/checkpoints/step_00000012") -> Any:
    weights, task = SimpleNamespace(source=source), SimpleNamespace(examines_splits=examines_splits)
    return SimpleNamespace(folder=folder, task=task, weights=weights)


def test_a_run_has_its_own_folder_and_an_export_one_beside_the_output():
    assert report_folder(settings(), trained(Path("runs/x"))) == Path("runs/x")
    assert report_folder(settings(output="a/scores.json"), trained(Path("runs/x"))) == Path("runs/x")
    assert report_folder(settings(output="a/scores.json"), trained(None)) == Path("a/scores_report")
    assert report_folder(settings(), trained(None)) is None
    assert report_folder(settings(report=False), trained(Path("runs/x"))) is None
    assert report_folder(settings(), trained(Path("runs/x"), examines_splits=False)) is None


def test_the_weights_are_named():
    assert (
        describe_weights(settings(average_last=3), trained(Path("runs/x")))
        == "step_00000012, auto, mean of 3 checkpoints"
    )
    assert describe_weights(settings(), trained(None, source="an/export")) == "an/export"


def test_a_disk_that_rejects_the_report_is_reported(tmp_path: Path):
    (tmp_path / "analysis").touch()
    assert "could not be written: the disk refused (" in add_to_report(tmp_path, "test", {})
    assert [path.name for path in tmp_path.iterdir()] == ["analysis"]


def test_a_negative_number_of_examples_is_rejected():
    with pytest.raises(ConfigError, match="report_examples` is -1"):
        settings(report_examples=-1)


def test_a_negative_number_of_explanations_is_rejected():
    with pytest.raises(ConfigError, match="report_explanations` is -1"):
        settings(report_explanations=-1)
