"""Checkpoints of a run: the best one is kept, a full disk costs one, and a damaged one is skipped."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from framework.callbacks.cadence import Cadence
from framework.callbacks.checkpointing import Checkpointing
from framework.checkpoint.layout import complete_checkpoints, newest_complete, step_of
from framework.checkpoint.retention import Retention
from framework.checkpoint.save import SaveError
from tests.support.processes.workers import WorkerPool
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=8, log_every_n_steps=1, validate_every_n_steps=4, checkpoint_every_n_steps=2)


class SetRetention(pl.Callback):
    """Replaces the policy of the run's own callback."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpointing):
                callback.retention = self.retention


def steps(run_folder: Path) -> list[int]:
    return [step_of(folder) for folder in complete_checkpoints(run_folder / "checkpoints")]


def state(run_folder: Path, step: int) -> dict[str, Any]:
    return json.loads((run_folder / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())


def rows(run_folder: Path) -> dict[int, dict[str, float]]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_a_checkpoint_records_the_validation_of_its_own_step_only(tmp_path: Path) -> None:
    train(tmp_path, cadence=CADENCE, extra_callbacks=(SetRetention(Retention(keep_last=9)),))
    assert steps(tmp_path) == [2, 4, 6, 8]
    for step in (4, 8):
        logged = {name: value for name, value in rows(tmp_path)[step].items() if name.startswith("val/")}
        assert state(tmp_path, step)["validation"] == logged
        assert "val/loss" in logged
    assert all("validation" not in state(tmp_path, step) for step in (2, 6))


@pytest.mark.parametrize(("mode", "choose"), [("min", min), ("max", max)])
def test_the_best_checkpoint_is_kept_although_it_is_old(mode: str, choose: Callable[..., int], tmp_path: Path) -> None:
    cadence = Cadence(max_steps=6, log_every_n_steps=1, validate_every_n_steps=1, checkpoint_every_n_steps=1)
    retention = Retention(keep_last=1, keep_best=1, best_mode=mode)
    train(tmp_path, cadence=cadence, extra_callbacks=(SetRetention(retention),))
    losses = {step: row["val/loss"] for step, row in rows(tmp_path).items()}
    assert len(losses) == 6
    best = choose(losses, key=losses.__getitem__)
    assert steps(tmp_path) == sorted({best, 6})


def fill_disk_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Simulates a full disk for the shards of one step."""
    real = Path.open

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        stream = real(path, *args, **kwargs)
        if path.suffix == ".distcp" and path.parent.name == f"step_{step:08d}.tmp":
            stream.close()
            return real(Path("/dev/full"), *args, **kwargs)
        return stream

    patch.setattr(Path, "open", opened)


def test_a_full_disk_costs_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_disk_at(6, monkeypatch)
    train(tmp_path, cadence=CADENCE)
    assert steps(tmp_path) == [4, 8]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "could not be written" in line]
    assert line.startswith("step 6: ") and "step_00000006" in line and "No space left on device" in line
    assert line.endswith("Training continues without this checkpoint.")
    assert sorted(rows(tmp_path)) == list(range(1, 9))
    assert json.loads((tmp_path / "summary.json").read_text())["ended"] == "finished"


def test_a_run_fails_if_its_last_checkpoint_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk_at(8, monkeypatch)
    with pytest.raises(SaveError, match="step_00000008 could not be written: the disk refused rank 0"):
        train(tmp_path, cadence=CADENCE)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ended"] == "failed"
    assert "No space left on device" in summary["why"]


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, refusals = os.rmdir, []

    def refuse_once(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "step_00000002" and not refusals:
            refusals.append(path)
            raise OSError(39, "Directory not empty")
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "rmdir", refuse_once)
    train(tmp_path, cadence=CADENCE)
    assert len(refusals) == 1
    assert "An old checkpoint could not be removed" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000006", "step_00000008"]


def damage(run_folder: Path, step: int) -> None:
    shard = run_folder / "checkpoints" / f"step_{step:08d}" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])


def cut_after(run_folder: Path, step: int) -> None:
    """Restores the files that a kill right after a checkpoint leaves: no later checkpoint, no summary."""
    for folder in complete_checkpoints(run_folder / "checkpoints"):
        if step_of(folder) > step:
            (folder / "COMPLETE").unlink()
    (run_folder / "summary.json").unlink()


def test_a_damaged_checkpoint_is_skipped_and_its_step_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = (SetRetention(Retention(keep_last=9)),)
    train(tmp_path, cadence=CADENCE, extra_callbacks=keep)
    expected = (tmp_path / "metrics.jsonl").read_bytes()
    cut_after(tmp_path, 6)
    damage(tmp_path, 6)
    damage(tmp_path, 4)
    capsys.readouterr()
    train(tmp_path, cadence=CADENCE, checkpoint=newest_complete(tmp_path / "checkpoints"), extra_callbacks=keep)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("checkpoint: ")]
    assert line.startswith("checkpoint: step_00000006 is damaged (")
    assert "; step_00000004 is damaged (" in line and "bytes were written" in line
    assert line.endswith("; step_00000002 is used instead")
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_damaged_checkpoints_of_another_run_are_not_changed(tmp_path: Path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    train(other, cadence=CADENCE)
    damage(other, 8)
    train(own, cadence=CADENCE, checkpoint=newest_complete(other / "checkpoints"))
    assert steps(other) == [6, 8]
    assert steps(own) == [8]


def run_ranks(run_folder: str, checkpoint: str | None) -> None:
    train(Path(run_folder), "fsdp2", CADENCE, checkpoint=None if checkpoint is None else Path(checkpoint))


def test_two_ranks_skip_a_damaged_checkpoint_together(workers: WorkerPool, tmp_path: Path) -> None:
    workers.run(run_ranks, 2, str(tmp_path), None)
    expected = (tmp_path / "metrics.jsonl").read_bytes()
    cut_after(tmp_path, 8)
    shard = tmp_path / "checkpoints" / "step_00000008" / "__1_0.distcp"
    shard.unlink()
    workers.run(run_ranks, 2, str(tmp_path), str(shard.parent))
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected
    assert steps(tmp_path) == [6, 8]
    assert shard.exists()
