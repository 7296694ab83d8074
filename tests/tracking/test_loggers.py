"""Loggers beside the run folder: rows arrive with their steps, and a resumed run continues in the same place."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.tracking.logger_config import LoggerConfig
from framework.tracking.loggers import check_loggers, open_loggers
from framework.tracking.metrics_jsonl import METRICS_FILE, PERF_FILE, MetricsFile

ROWS = {2: {"train/loss": 3.5, "perf/tokens_per_second": 9.0}, 4: {"train/loss": 2.5}, 5: {"val/loss": 2.25}}


def log(folder: Path, settings: LoggerConfig, rows: dict[int, dict[str, float]], step: int) -> None:
    """Writes rows as a run from a step does, into its own files and to its loggers."""
    files = {key: MetricsFile(folder / name, step) for key, name in (("train", METRICS_FILE), ("perf", PERF_FILE))}
    (logger,) = open_loggers(folder, {"seed": 3, "token": "***"}, settings, step)
    for at, row in rows.items():
        for prefix, file in files.items():
            of_file = {key: value for key, value in row.items() if (prefix == "perf") == key.startswith("perf/")}
            file.append({"step": at, **of_file})
        logger.log_metrics(row, step=at)
    logger.finalize("success")
    for file in files.values():
        file.close()


def test_csv_has_each_row_once_after_a_resume(tmp_path, recwarn):
    log(tmp_path, LoggerConfig(csv=True), ROWS, 0)
    log(tmp_path, LoggerConfig(csv=True), {5: {"val/loss": 2.0}, 6: {"train/loss": 1.5}}, 4)
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = {
            int(row.pop("step")): {key: float(each) for key, each in row.items() if each}
            for row in csv.DictReader(file)
        }
    assert rows == {2: ROWS[2], 4: ROWS[4], 5: {"val/loss": 2.0}, 6: {"train/loss": 1.5}}
    assert not recwarn.list


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="requires tensorboard")
def test_tensorboard_has_each_row_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, LoggerConfig(tensorboard=True), ROWS, 0)
    log(tmp_path, LoggerConfig(tensorboard=True), {5: {"val/loss": 2.0}, 6: {"train/loss": 1.5}}, 4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 3.5), (4, 2.5), (6, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(5, 2.0)]
    assert "config/text_summary" in events.Tags()["tensors"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="requires mlflow")
def test_mlflow_continues_a_run_under_its_id_and_survives_its_server(tmp_path, capfd, monkeypatch):
    from mlflow.tracking import MlflowClient

    settings = LoggerConfig(mlflow=True, project="mine", tags=("tiny",))
    log(tmp_path, settings, ROWS, 0)
    log(tmp_path, settings, {6: {"train/loss": 1.5}}, 5)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(json.loads((tmp_path / "mlflow.json").read_text())["run_id"])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(2, 3.5), (4, 2.5), (6, 1.5)]
    assert run.data.params == {"seed": "3", "token": "***"} and run.data.tags["tags"] == "tiny"
    assert client.get_experiment(run.info.experiment_id).name == "mine"

    (logger,) = open_loggers(tmp_path, {}, settings, 6)
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    logger.log_metrics({"train/loss": 1.0}, step=7)
    logger.finalize("success")
    assert capfd.readouterr().out.count("The run continues without it.") == 1


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard or tensorboardX"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_package_is_reported_before_the_run(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    expected = rf"logger={name} is chosen, but {package} is not installed\. .* pip install -e '\.\[{name}\]'"
    with pytest.raises(ConfigError, match=expected):
        check_loggers(LoggerConfig(**{name: True}))
    check_loggers(LoggerConfig(csv=True))
