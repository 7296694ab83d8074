"""What summary.json says about the rows of a run, and how it ended."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
from rich.console import Console

from framework.callbacks.cadence import Cadence
from framework.callbacks.summary import best_row, last_values
from framework.tracking.closing_table import print_closing_table
from tests.modules.toy_run import train

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

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
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
        (ValueError("no room"), "failed", "ValueError: no room"),
        (KeyboardInterrupt(), "stopped", "interrupted from the keyboard"),
    ],
)
def test_a_failure_is_written_down(error: BaseException, ended: str, why: str, tmp_path: Path):
    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        train(tmp_path, cadence=Cadence(max_steps=4, log_every_n_steps=1), extra_callbacks=(Fail(error),))
    assert (summary(tmp_path)["ended"], summary(tmp_path)["why"]) == (ended, why)
    assert not (tmp_path / "summary.tmp").exists()


def test_the_closing_table_shows_metrics_speed_and_places(tmp_path: Path):
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
