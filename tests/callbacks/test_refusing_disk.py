"""A disk that rejects a row, the summary or a picture: one clear error or line, and a restart loses nothing."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import pytest

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.errors import CheckpointError
from framework.tracking.metrics_jsonl import MetricsFile
from tests.support.training.background_saves import wait_for_write
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=7, log_every_n_steps=1, checkpoint_every_n_steps=2)


@contextmanager
def no_limit_afterwards() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_file_sizes(num_bytes: int) -> None:
    """Simulates a full disk: the write that crosses the limit is truncated, and the next one fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class FillDisk(pl.Callback):
    """Leaves 30 bytes of room for the row of step 6."""

    def __init__(self, rows: Path) -> None:
        self.rows = rows

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch.step == 5:
            wait_for_write(trainer)
            limit_file_sizes(self.rows.stat().st_size + 30)


@pytest.mark.parametrize("summary_has_room", [True, False])
def test_a_rejected_row_ends_the_run_and_a_restart_loses_nothing(
    summary_has_room: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, refused = tmp_path / "whole", tmp_path / "refused"
    train(whole, cadence=CADENCE)
    if not summary_has_room:
        (refused / "summary.json.part").mkdir(parents=True)  # a folder with the name of the file
    with no_limit_afterwards(), pytest.raises(CheckpointError) as caught:
        train(refused, cadence=CADENCE, extra_callbacks=(FillDisk(refused / "metrics.jsonl"),))
    assert str(caught.value).startswith(f"{refused / 'metrics.jsonl'} could not be written (")
    assert "File too large" in str(caught.value) and "Free disk space" in str(caught.value)
    if summary_has_room:
        summary = json.loads((refused / "summary.json").read_text())
        assert (summary["ended"], summary["steps"]) == ("failed", 6)
        assert "metrics.jsonl could not be written" in summary["why"]
    else:
        assert f"{refused / 'summary.json'} could not be written" in capsys.readouterr().out
        (refused / "summary.json.part").rmdir()
    torn = (refused / "metrics.jsonl").read_bytes().splitlines(keepends=True)[-1]
    assert len(torn) == 30

    checkpoint = newest_complete(refused / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step_00000004"
    train(refused, cadence=CADENCE, checkpoint=checkpoint)
    assert (refused / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_rows_file_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").touch()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl could not be written"):
        MetricsFile(tmp_path / "in_the_way" / "metrics.jsonl")


def test_a_rejected_summary_is_an_error_and_the_next_start_writes_it(tmp_path: Path) -> None:
    (tmp_path / "summary.json.part").mkdir()
    with pytest.raises(CheckpointError, match=r"summary.json could not be written"):
        train(tmp_path, cadence=CADENCE)
    (tmp_path / "summary.json.part").rmdir()
    rows = (tmp_path / "metrics.jsonl").read_bytes()
    train(tmp_path, cadence=CADENCE, checkpoint=newest_complete(tmp_path / "checkpoints"))
    assert json.loads((tmp_path / "summary.json").read_text())["ended"] == "finished"
    assert (tmp_path / "metrics.jsonl").read_bytes() == rows


def test_rejected_pictures_do_not_fail_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plots").touch()
    train(tmp_path, cadence=CADENCE)
    assert f"{tmp_path / 'plots'} could not be written (" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["ended"] == "finished"
