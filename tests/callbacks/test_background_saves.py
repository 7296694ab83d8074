"""Saves in the background: each writes the state of its step, one at a time, and the run ends only after the last."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from framework.callbacks import checkpointing
from framework.callbacks.cadence import Cadence
from framework.callbacks.checkpointing import Checkpointing
from framework.checkpoint.hashing import HashingFileSystem
from framework.checkpoint.integrity import verify
from framework.checkpoint.layout import complete_checkpoints, newest_complete, step_of
from framework.distributed.processes.beats import Beats
from framework.distributed.processes.failure_report import REPORT
from framework.errors import CheckpointError
from tests.support.processes.workers import WorkerPool
from tests.support.training.background_saves import LONG, AtStepEnd, KeepAll, check_same
from tests.support.training.toy_run import train

ROOT = Path(__file__).resolve().parents[2]
CADENCE = Cadence(max_steps=7, log_every_n_steps=1, validate_every_n_steps=3, checkpoint_every_n_steps=2)


class HeldWrites:
    """Replaces `write_checkpoint`: each write waits until it is released, and records its time."""

    def __init__(self, may_go: Callable[[int], bool]) -> None:
        self.may_go = may_go
        self.log: list[tuple[str, int]] = []
        self.in_main_thread = False
        self._real = checkpointing.write_checkpoint

    def __call__(self, folder: Path, step: int, *rest: Any) -> Path:
        self.log.append(("begin", step))
        self.in_main_thread |= threading.current_thread() is threading.main_thread()
        deadline = time.monotonic() + LONG
        while not self.may_go(step):
            assert time.monotonic() < deadline, f"the write of step {step} was never released"
            time.sleep(0.002)
        written = self._real(folder, step, *rest)
        self.log.append(("end", step))
        return written


def run_twice(folder: str, strategy: str) -> list[tuple[str, int]]:
    """Makes a run with synchronous saves, and one whose writes start after the next step has changed the weights."""
    train(Path(folder) / "synchronous", strategy, CADENCE, extra_callbacks=(KeepAll(),), checkpoint_async=False)
    finished = [0]
    # Steps 6 and 7 are saved in succession: the last save waits for the one before.
    held = HeldWrites(lambda step: finished[0] > step or step >= 6)
    real, checkpointing.write_checkpoint = checkpointing.write_checkpoint, held  # type: ignore[assignment]
    note = AtStepEnd(lambda step: finished.__setitem__(0, step))
    try:
        train(Path(folder) / "background", strategy, CADENCE, extra_callbacks=(KeepAll(), note))
    finally:
        checkpointing.write_checkpoint = real
    assert not held.in_main_thread
    return held.log


ONE_AFTER_THE_OTHER = [(what, step) for step in (2, 4, 6, 7) for what in ("begin", "end")]


def test_background_saves_write_the_bytes_of_synchronous_saves(tmp_path: Path) -> None:
    assert run_twice(str(tmp_path), "single") == ONE_AFTER_THE_OTHER
    check_same(tmp_path, 1)


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_two_ranks_write_the_bytes_of_synchronous_saves(workers: WorkerPool, tmp_path: Path, strategy: str) -> None:
    for log in workers.run(run_twice, 2, str(tmp_path), strategy):
        assert log == ONE_AFTER_THE_OTHER
    check_same(tmp_path, 2)


def test_a_due_save_waits_for_the_previous_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of step 2 ends only when the main thread waits for it, at the save of step 4."""
    waiting = threading.Event()
    held = HeldWrites(lambda step: step != 2 or waiting.is_set())
    real_wait = Checkpointing.wait

    def wait(self: Checkpointing, trainer: pl.Trainer) -> None:
        if trainer.global_step == 4:
            assert held.log == [("begin", 2)]
            waiting.set()
        real_wait(self, trainer)

    monkeypatch.setattr(checkpointing, "write_checkpoint", held)
    monkeypatch.setattr(Checkpointing, "wait", wait)
    train(tmp_path, cadence=CADENCE)
    assert held.log == ONE_AFTER_THE_OTHER


def test_the_end_is_reported_only_after_the_last_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes a stop that is requested after the checkpoint callback was called."""

    class StopLate(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *unused: object) -> None:
            trainer.limit_val_batches = 0
            trainer.should_stop = trainer.global_step == 2

    begun = time.monotonic()
    held = HeldWrites(lambda step: time.monotonic() > begun + 2.0)
    monkeypatch.setattr(checkpointing, "write_checkpoint", held)
    train(tmp_path, cadence=CADENCE, extra_callbacks=(StopLate(),))
    assert held.log[-1][0] == "end"
    summary, complete = tmp_path / "summary.json", tmp_path / "checkpoints" / "step_00000002" / "COMPLETE"
    assert json.loads(summary.read_text())["ended"] == "stopped"
    assert complete.stat().st_mtime_ns <= summary.stat().st_mtime_ns


def test_no_copy_is_kept_if_no_save_falls_between_steps(tmp_path: Path) -> None:
    seen = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.extend(one._staging for one in trainer.callbacks if isinstance(one, Checkpointing))  # type: ignore[attr-defined]

    train(tmp_path / "a", cadence=Cadence(max_steps=2), extra_callbacks=(Look(),))
    train(tmp_path / "b", cadence=CADENCE, checkpoint_async=False, extra_callbacks=(Look(),))
    assert seen == [None, None]


@pytest.mark.parametrize("error", [ValueError("the training failed"), KeyboardInterrupt()])
def test_a_failure_lets_an_earlier_write_finish(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, printed = threading.Event(), []

    class Fail(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *unused: object) -> None:
            if trainer.global_step == 5:
                failed.set()
                raise error

    def may_go(step: int) -> bool:
        if step >= 4 and failed.is_set():
            time.sleep(0.3)
            printed.append(REPORT.is_printed)
        return step < 4 or failed.is_set()

    monkeypatch.setattr(checkpointing, "write_checkpoint", HeldWrites(may_go))
    REPORT.open(tmp_path, tmp_path, tmp_path / "rank.log", Beats(tmp_path, 1.0))
    with pytest.raises((ValueError, SystemExit)):
        train(tmp_path, cadence=CADENCE, extra_callbacks=(Fail(),))
    REPORT.close()
    assert printed == [isinstance(error, ValueError)]
    assert capsys.readouterr().err.count("ValueError (step 6): the training failed") == printed[0]
    newest = newest_complete(tmp_path / "checkpoints")
    assert newest is not None and step_of(newest) == 4
    verify(newest, "checksums")


def stumble_at_step_4(folder: str) -> tuple[int, str]:
    """Raises a programming error on rank 1 while it writes its shards of step 4; returns the steps of this rank."""
    finished = []
    real = HashingFileSystem.create_stream

    def create_stream(self: HashingFileSystem, path: Any, mode: str) -> Any:
        if os.environ["RANK"] == "1" and "step_00000004" in str(path):
            raise KeyError("shape")
        return real(self, path, mode)

    HashingFileSystem.create_stream = create_stream  # type: ignore[method-assign]
    try:
        train(Path(folder), "fsdp2", CADENCE, extra_callbacks=(AtStepEnd(finished.append),))
    except CheckpointError as error:
        return len(finished), str(error)
    finally:
        HashingFileSystem.create_stream = real  # type: ignore[method-assign]
    return len(finished), "nothing was raised"


def test_an_error_in_a_write_ends_all_ranks_at_the_next_save(workers: WorkerPool, tmp_path: Path) -> None:
    first, second = workers.run(stumble_at_step_4, 2, str(tmp_path))
    assert first == second
    assert first[0] == 6, "the save of step 6, after its validation, raises the error"
    assert "step_00000004 could not be written by rank 1 (KeyError: 'shape')" in first[1]
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "checkpoints")] == [2]


def fill_disk_of_rank_1(folder: str) -> int:
    """Simulates a full disk for this rank's shards of step 4; returns the steps made."""
    real, finished = Path.open, []

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        stream = real(path, *arguments, **named)
        if path.name == "__1_0.distcp" and path.parent.name == "step_00000004.tmp":
            stream.close()
            return real(Path("/dev/full"), *arguments, **named)
        return stream

    Path.open = opened  # type: ignore[assignment, method-assign]
    try:
        train(Path(folder), "fsdp2", CADENCE, extra_callbacks=(KeepAll(), AtStepEnd(finished.append)))
    finally:
        Path.open = real  # type: ignore[method-assign]
    return len(finished)


def test_a_full_disk_on_one_rank_costs_all_ranks_one_checkpoint(workers: WorkerPool, tmp_path: Path) -> None:
    assert workers.run(fill_disk_of_rank_1, 2, str(tmp_path)) == [7, 7]
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "checkpoints")] == [2, 6, 7]
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize(("how", "newest"), [("raise", 4), ("die", 2)])
def test_a_rank_that_dies_during_a_write_causes_no_hang_and_no_partial_checkpoint(
    how: str, newest: int, tmp_path: Path
) -> None:
    drop = ("TORCHELASTIC", "RANK", "WORLD", "LOCAL_", "GROUP_", "MASTER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, "-m", "tests.support.training.save_in_flight_program", str(tmp_path), how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode != 0
    assert ("the training failed" in ended.stderr) == (how == "raise"), ended.stderr
    complete = complete_checkpoints(tmp_path / "checkpoints")
    assert step_of(complete[-1]) == newest, ended.stderr
    for checkpoint in complete:
        verify(checkpoint, "checksums")


def test_copies_do_not_change_with_the_tensors() -> None:
    staging = checkpointing.Staging()
    tensor = torch.arange(6.0).reshape(2, 3).t()
    first = staging.copy({"a": tensor, "b": torch.tensor(3)})
    tensor.zero_()
    assert first["a"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert first["a"].stride() == tensor.stride()
    memory = first["a"].data_ptr()
    second = staging.copy({"a": tensor, "b": torch.tensor(4)})
    assert second["a"].data_ptr() == memory
    assert (second["a"].sum().item(), second["b"].item()) == (0.0, 4)
