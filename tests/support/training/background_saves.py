"""Callbacks and comparisons for runs that save checkpoints in the background."""

import json
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl

from framework.callbacks.checkpointing import Checkpointing
from framework.checkpoint.integrity import verify
from framework.checkpoint.layout import complete_checkpoints
from framework.checkpoint.retention import Retention

LONG = 60.0


class KeepAll(pl.Callback):
    """Callback that keeps every checkpoint."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpointing):
                callback.retention = Retention(keep_last=99)


def wait_for_write(trainer: pl.Trainer) -> None:
    """Waits until the checkpoint that is being written is complete. Collective: all ranks must call."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpointing):
            callback.wait(trainer)


class AtStepEnd(pl.Callback):
    """Callback that calls a function at the end of each step, after the standard callbacks."""

    def __init__(self, action: Callable[[int], None]) -> None:
        self.action = action

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: object) -> None:
        self.action(trainer.global_step)


def shards(run_folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_folder)): path.read_bytes()
        for path in sorted(run_folder.rglob("checkpoints/*/*_0.distcp"))
    }


def check_same(folder: Path, num_ranks: int) -> None:
    expected, found = shards(folder / "synchronous"), shards(folder / "background")
    assert len(expected) == 4 * num_ranks
    assert found == expected
    for name in ("metrics.jsonl",):
        assert (folder / "background" / name).read_bytes() == (folder / "synchronous" / name).read_bytes()
    for checkpoint in complete_checkpoints(folder / "background" / "checkpoints"):
        verify(checkpoint, "checksums")
        states = [
            json.loads((folder / kind / "checkpoints" / checkpoint.name / "state.json").read_text())
            for kind in ("background", "synchronous")
        ]
        assert states[0].pop("callbacks").keys() == states[1].pop("callbacks").keys()  # they contain durations
        assert states[0] == states[1]
