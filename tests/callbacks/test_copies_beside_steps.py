"""Copies of a save run beside the next step, and no tensor changes before its copy is complete."""

import json
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from framework.callbacks import checkpointing
from framework.callbacks.cadence import Cadence
from framework.checkpoint.integrity import verify
from framework.checkpoint.layout import complete_checkpoints, step_folder, step_of
from framework.checkpoint.load import load_checkpoint
from framework.checkpoint.staging import Staging
from framework.errors import CheckpointError
from framework.modules.encoder_module import EncoderModule
from tests.support.processes.workers import WorkerPool
from tests.support.training.background_saves import LONG, AtStepEnd, KeepAll, check_same, shards
from tests.support.training.toy_run import build_module, train

CADENCE = Cadence(max_steps=7, log_every_n_steps=1, validate_every_n_steps=3, checkpoint_every_n_steps=2)


class LateCopies(pl.Callback):
    """Delays each copy until the main thread waits for it, or has made the next step without waiting.

    It replaces `Staging.copy` and the call with which the main thread waits, for saves after even steps. The copy
    before the first step is not delayed.
    """

    def __init__(self, patch: pytest.MonkeyPatch, extra_seconds: float = 0.0) -> None:
        self.seen: list[str] = []
        self.extra_seconds = extra_seconds
        self._may_go = threading.Event()
        self._copy, self._wait = Staging.copy, checkpointing.wait
        patch.setattr(Staging, "copy", lambda *arguments: self.copy(*arguments))
        patch.setattr(checkpointing, "wait", self.wait)

    def copy(self, staging: Staging, *arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return self._copy(staging, *arguments)
        assert self._may_go.wait(LONG), "training did not continue beside the copy"
        time.sleep(self.extra_seconds)
        copies = self._copy(staging, *arguments)
        self.seen.append("copied")
        return copies

    def wait(self, pending: list[Future[Any]]) -> None:
        self._may_go.set()
        self._wait(pending)

    def on_train_batch_start(self, *unused: object) -> None:
        self._may_go.clear()

    def on_before_optimizer_step(self, trainer: pl.Trainer, *unused: object) -> None:
        self.seen.append(f"backward {trainer.global_step + 1}")

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: object) -> None:
        if trainer.global_step % 2 == 1:
            self._may_go.set()


class BetweenSteps(pl.Callback):
    """Changes the tensors after the saves of steps 2 and 4, and records whether they were copied by then."""

    def __init__(self, late: LateCopies | None, folder: Path) -> None:
        self.late = late
        self.folder = folder
        self.were_copied: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: object) -> None:
        assert isinstance(pl_module, EncoderModule)
        optimizer = pl_module.optimizer
        if trainer.global_step == 2:
            optimizer.swap_average()
            self._note()
            optimizer.swap_average()
        if trainer.global_step == 4:
            load_checkpoint(step_folder(self.folder / "checkpoints", 2), pl_module.model, optimizer)
            self._note()

    def _note(self) -> None:
        if self.late is not None:
            self.were_copied.append(self.late.seen[-1] == "copied")


def run_twice(folder: str, strategy: str) -> list[str]:
    """Makes a run with synchronous saves, and one with copies as late as possible; both validate a moving average."""
    train(
        Path(folder) / "synchronous",
        strategy,
        CADENCE,
        extra_callbacks=(KeepAll(),),
        module=build_module(ema_decay=0.8),
        checkpoint_async=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        late = LateCopies(patch)
        train(
            Path(folder) / "background",
            strategy,
            CADENCE,
            extra_callbacks=(KeepAll(), late),
            module=build_module(ema_decay=0.8),
        )
    return late.seen


BESIDE_THE_STEPS_AFTER = [
    *("backward 1", "backward 2", "backward 3", "copied", "backward 4", "backward 5", "copied"),
    *("backward 6", "backward 7", "copied"),
]


def test_only_the_update_waits_for_the_copy(tmp_path: Path) -> None:
    assert run_twice(str(tmp_path), "single") == BESIDE_THE_STEPS_AFTER
    check_same(tmp_path, 1)


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_only_the_update_waits_for_the_copy_on_two_ranks(workers: WorkerPool, tmp_path: Path, strategy: str) -> None:
    for log in workers.run(run_twice, 2, str(tmp_path), strategy):
        assert log == BESIDE_THE_STEPS_AFTER
    check_same(tmp_path, 2)


def test_all_other_changes_of_the_tensors_wait_for_the_copy(tmp_path: Path) -> None:
    """These are the exchange with the average and the loading of a checkpoint."""
    plain = BetweenSteps(None, tmp_path / "synchronous")
    module = build_module(ema_decay=0.8)
    train(plain.folder, cadence=CADENCE, extra_callbacks=(KeepAll(), plain), module=module, checkpoint_async=False)
    with pytest.MonkeyPatch.context() as patch:
        late = LateCopies(patch)
        changes = BetweenSteps(late, tmp_path / "background")
        module = build_module(ema_decay=0.8)
        train(changes.folder, cadence=CADENCE, extra_callbacks=(KeepAll(), late, changes), module=module)
    assert changes.were_copied == [True, True]
    assert shards(changes.folder) == shards(plain.folder)


def test_the_wait_for_a_copy_counts_as_checkpoint_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = LateCopies(monkeypatch, extra_seconds=0.5)
    train(tmp_path, cadence=CADENCE, extra_callbacks=(late,))
    rows = [json.loads(line) for line in (tmp_path / "perf.jsonl").read_text().splitlines()]
    stalls = [row["perf/checkpoint_stall_seconds"] for row in rows]
    assert [stalls[step - 1] >= 0.5 for step in (3, 5, 7)] == [True, True, True]
    assert [stalls[step - 1] for step in (1, 2, 4, 6)] == [0.0] * 4  # windows without a save and without a wait


def fail_on_rank_1(folder: str, number: int, error: Exception) -> tuple[int, str, int | None]:
    """Makes a run in which one copy fails on one rank; returns this rank's steps, the error, and its rank."""
    calls: list[str] = []
    finished: list[int] = []
    copy = Staging._copy

    def failing(self: Staging, key: str, tensor: Any) -> Any:
        calls.append(key)
        if calls.count(key) == number and os.environ["RANK"] == "1":
            raise error
        return copy(self, key, tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staging, "_copy", failing)
        try:
            train(Path(folder), "fsdp2", CADENCE, extra_callbacks=(AtStepEnd(finished.append),))
        except CheckpointError as raised:
            return len(finished), str(raised), raised.rank
    return len(finished), "nothing was raised", None


@pytest.mark.parametrize(
    ("number", "steps", "complete", "error"),
    [(1, 0, [], MemoryError("no room")), (3, 6, [2], RuntimeError("no room"))],
    ids=["the one before the first step", "that of step 4"],
)
def test_a_copy_that_fails_on_one_rank_ends_all_ranks(
    workers: WorkerPool, tmp_path: Path, number: int, steps: int, complete: list[int], error: Exception
) -> None:
    first, second = workers.run(fail_on_rank_1, 2, str(tmp_path), number, error)
    assert first == second
    assert (first[0], first[2]) == (steps, 1)
    assert f"could not be copied to host memory ({type(error).__name__}: no room)" in first[1]
    left = complete_checkpoints(tmp_path / "checkpoints")
    assert [step_of(path) for path in left] == complete
    for checkpoint in left:
        verify(checkpoint, "checksums")
