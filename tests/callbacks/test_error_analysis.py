"""The validations that keep their rows for the error analysis, and a disk that rejects the files."""

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from framework.callbacks.early_stopping import EarlyStopping, Patience
from framework.callbacks.error_analysis import ErrorAnalysis
from framework.data.flat_source import FlatSource
from framework.tasks.examination import Examination, ExaminedRow, ExaminedSplit
from framework.tracking.analysis.content import read_analyses


def trainer(step: int, *callbacks: Any) -> Any:
    return SimpleNamespace(global_step=step, max_steps=20, callbacks=callbacks, is_global_zero=True, should_stop=False)


def module(examines_splits: bool = True, accuracy: float = 0.5) -> Any:
    split = ExaminedSplit(
        FlatSource(np.zeros(2), np.array([2]), {}, {}, max_length=4),
        "accuracy",
        {"accuracy": accuracy},
        [],
        Examination([ExaminedRow(2, 1.0, 0.0, text="a text")]),
    )
    return SimpleNamespace(
        task=SimpleNamespace(patch_size=0, examines_splits=examines_splits),
        examines=False,
        examined=SimpleNamespace(examine=lambda: split),
        validation_metrics={"val/accuracy": accuracy},
        optimizer=SimpleNamespace(keeps_average=True),
    )


@pytest.mark.parametrize(
    ("step", "examines_splits", "keeps"), [(19, True, False), (20, True, True), (20, False, False)]
)
def test_the_validation_after_the_last_step_keeps_its_rows(
    step: int, examines_splits: bool, keeps: bool, tmp_path: Path
):
    run = module(examines_splits)
    ErrorAnalysis(tmp_path, None, 3).on_validation_start(trainer(step), run)  # type: ignore[arg-type]
    assert run.examines is keeps


def test_a_validation_that_may_exhaust_the_patience_keeps_its_rows(tmp_path: Path):
    stopping, analysis = EarlyStopping(Patience(2), "accuracy", "max"), ErrorAnalysis(tmp_path, None, 3)  # type: ignore[arg-type]
    run, kept = module(), []
    for step, accuracy in enumerate([0.5, 0.4, 0.6, 0.5, 0.5], start=1):
        run.validation_metrics = {"val/accuracy": accuracy}
        analysis.on_validation_start(trainer(step, stopping), run)
        kept.append(run.examines)
        stopping.on_validation_end(trainer(step), run)
    # The next validation can end the run only after a first failure; it did so after the fifth.
    assert kept == [False, False, True, False, True]
    assert stopping.why is not None


def test_rank_0_writes_the_rows_and_releases_them(tmp_path: Path):
    run = module()
    ErrorAnalysis(tmp_path, None, 3).on_validation_end(trainer(20), run)  # type: ignore[arg-type]
    kept = read_analyses(tmp_path)["validation"]
    assert kept["facts"]["weights"] == "step 20, moving average"
    assert [each["text"] for each in kept["examples"]] == ["a text"]
    assert run.examined is None


def test_a_disk_that_rejects_the_files_costs_only_the_analysis(tmp_path: Path):
    (tmp_path / "analysis").touch()  # a file with the name of the folder
    output = StringIO()
    ErrorAnalysis(tmp_path, None, 3, console=Console(file=output)).on_validation_end(trainer(20), module())  # type: ignore[arg-type]
    assert f"{tmp_path / 'analysis'} could not be written (" in output.getvalue()


@pytest.mark.parametrize(("explains", "shown"), [(True, " and words of up to 9 others"), (False, "")])
def test_the_announcement_names_words_of_explained_rows(tmp_path: Path, explains: bool, shown: str):
    output, run, trained = StringIO(), trainer(0), module()
    run.datamodule = SimpleNamespace(plans=dict.fromkeys(("train", "validation")))
    trained.task.explains_predictions = explains
    console = Console(file=output, width=200)
    ErrorAnalysis(tmp_path, None, 3, console=console, num_explanations=9).on_train_start(run, trained)  # type: ignore[arg-type]
    assert f"texts of up to 3 validation rows{shown}. Set trainer.report_examples=0" in output.getvalue()


def test_a_run_that_is_stopped_explains_nothing(tmp_path: Path):
    run = module()
    run.task.explains_predictions = True
    analysis = ErrorAnalysis(tmp_path, None, 3, num_explanations=9)  # type: ignore[arg-type]
    analysis.on_validation_end(trainer(19), run)
    analysis.on_train_end(trainer(19), run)
    assert "explanations" not in read_analyses(tmp_path)["validation"]


@pytest.mark.parametrize(
    ("num_examples", "goes_to_wandb", "examines_splits", "splits", "shown"),
    [
        (3, False, True, ("train", "validation"), "report.html will show"),
        (3, True, True, ("train", "validation"), "report.html and the W&B run will show"),
        (0, True, True, ("train", "validation"), None),
        (3, True, False, ("train", "validation"), None),
        (3, True, True, ("train",), None),
    ],
)
def test_a_run_announces_at_its_start_which_outputs_will_show_texts(
    tmp_path: Path,
    num_examples: int,
    goes_to_wandb: bool,
    examines_splits: bool,
    splits: tuple[str, ...],
    shown: str,
):
    output = StringIO()
    run = trainer(0)
    run.datamodule = SimpleNamespace(plans=dict.fromkeys(splits))
    analysis = ErrorAnalysis(tmp_path, None, num_examples, goes_to_wandb, Console(file=output, width=200))  # type: ignore[arg-type]
    analysis.on_train_start(run, module(examines_splits))
    if shown is None:
        assert output.getvalue() == ""
    else:
        assert output.getvalue() == (
            f"texts: {shown} the texts of up to 3 validation rows. Set trainer.report_examples=0 to leave texts out.\n"
        )
