"""The content of summary.json: best and last rows of a run, and how it ended."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console

from framework.callbacks.cadence import Cadence
from framework.callbacks.summary import best_row, last_values
from framework.checkpoint.layout import complete_checkpoints, step_of
from framework.checkpoint.retention import Retention
from framework.tracking.analysis.closing_table import closing_table, print_closing_table
from tests.support.training.toy_run import build_module, train

ROWS = [
    {"step": 1, "train/loss": 4.0},
    {"step": 2, "val/loss": 3.0, "val/accuracy": 0.5},
    {"step": 4, "train/loss": 2.0, "val/loss": 3.5, "val/accuracy": 0.75},
    {"step": 6, "val/loss": 3.25, "val/accuracy": 0.75},
    {"step": 8, "val/loss": None},
]


class AskForStop(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop = True


class Fail(pl.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        raise self.error


def summary(run_folder: Path) -> dict:
    return json.loads((run_folder / "summary.json").read_text())


def test_best_is_the_earliest_row_with_the_best_value():
    assert best_row(ROWS, "val/loss", "min") == {"step": 2, "val/loss": 3.0, "val/accuracy": 0.5}
    assert best_row(ROWS, "val/accuracy", "max") == {"step": 4, "val/loss": 3.5, "val/accuracy": 0.75}
    assert best_row(ROWS, "val/macro_f1", "max") is None


def test_last_is_the_newest_value_of_each_key():
    assert last_values(ROWS[:4]) == {"train/loss": 2.0, "val/loss": 3.25, "val/accuracy": 0.75}


def test_a_stop_before_the_last_step_is_not_called_finished(tmp_path: Path):
    train(tmp_path, cadence=Cadence(max_steps=4, log_every_n_steps=1), extra_callbacks=(AskForStop(),))
    assert (summary(tmp_path)["ended"], summary(tmp_path)["steps"]) == ("stopped", 1)


@pytest.mark.parametrize(
    ("error", "ended", "why"),
    [
        (ValueError("no room"), "failed", "ValueError (step 1): no room"),
        (KeyboardInterrupt(), "stopped", "interrupted from the keyboard"),
    ],
)
def test_a_failure_is_recorded(error: BaseException, ended: str, why: str, tmp_path: Path):
    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        train(tmp_path, cadence=Cadence(max_steps=4, log_every_n_steps=1), extra_callbacks=(Fail(error),))
    assert (summary(tmp_path)["ended"], summary(tmp_path)["why"]) == (ended, why)
    assert not (tmp_path / "summary.json.part").exists()


class SpoilValidation(pl.Callback):
    """Makes the loss of some validations infinite, as diverged weights do."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_validation_start(self, trainer, pl_module) -> None:
        self.handle = pl_module.model.head.pair.register_forward_hook(
            lambda module, inputs, output: output * torch.inf if trainer.global_step in self.steps else output
        )

    def on_validation_end(self, trainer, pl_module) -> None:
        self.handle.remove()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_non_finite_validation_is_reported_and_is_never_the_best(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cadence = Cadence(max_steps=4, log_every_n_steps=1, validate_every_n_steps=1, checkpoint_every_n_steps=1)
    module = build_module()
    module.task.best_mode = mode
    retention = Retention(keep_last=1, keep_best=1, best_mode=mode)
    spoil = SpoilValidation({1, 4})
    train(tmp_path, cadence=cadence, extra_callbacks=(spoil,), module=module, retention=retention)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val/loss"] for row in rows}
    assert losses[1] is losses[4] is None
    best = {"min": min, "max": max}[mode]((2, 3), key=losses.__getitem__)
    assert summary(tmp_path)["ended"] == "finished"
    assert summary(tmp_path)["best"]["step"] == best
    assert summary(tmp_path)["last"]["val/loss"] is None
    kept = [step_of(folder) for folder in complete_checkpoints(tmp_path / "checkpoints")]
    assert kept == [best, 4]
    assert "val loss nan" in capsys.readouterr().out
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_closing_table(tmp_path, console)
    (line,) = [line for line in console.export_text().splitlines() if "val loss" in line]
    assert "not finite" in line and f"{losses[best]:.4f}" in line


def test_the_closing_table_shows_skipped_steps_only_if_there_are_any():
    facts = {"ended": "finished", "best": None, "last": {}, "steps": 9, "tokens": 1, "tokens_per_second": 1.0}
    facts["wall_seconds"] = 1.0
    for skipped, expected in (({}, []), ({"skipped_steps": 1234}, ["1,234"])):
        table = closing_table("a_run", facts | skipped)
        labels, values = (list(column.cells) for column in table.columns)
        assert [values[index] for index, label in enumerate(labels) if label == "skipped steps"] == expected


def test_the_closing_table_shows_metrics_speed_and_files(tmp_path: Path):
    run_folder = tmp_path / "a_run"
    train(run_folder, cadence=Cadence(max_steps=2, log_every_n_steps=1, validate_every_n_steps=1))
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_closing_table(run_folder, console)
    text = console.export_text()
    assert all("│" not in line for line in text.splitlines() if str(run_folder) in line)
    written = summary(run_folder)
    assert "a_run: finished" in text
    assert f"{written['last']['val/word_accuracy']:.4f}" in text
    assert f"{written['tokens']:,}" in text
    assert str(run_folder / "plots") in text
    assert "loss.png" in text
