"""Pre-training that fails once, at one step on one rank, as CLOZE_TEST_FAULT says: "KIND RANK STEP FILE".

It fails only if FILE does not exist, and creates FILE, so that a restarted run succeeds.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from framework.batch import PackedBatch
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.position import POSITION
from framework.errors import DataError
from framework.tasks.pretraining.task import PretrainingTask


def fault(kinds: tuple[str, ...], step: int | None) -> None:
    """Fails if this is the configured step and rank. `step` is counted from 1."""
    kind, rank, at, file = os.environ["CLOZE_TEST_FAULT"].split(" ", 3)
    if kind not in kinds or (process_info().rank, step) != (int(rank), int(at)) or Path(file).exists():
        return
    Path(file).touch()
    if kind == "error":
        raise DataError("shard.txt, row 8: no text.")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind.startswith("sleep"):
        while True:
            time.sleep(1.0)


class FaultyTask(PretrainingTask):
    """Task that fails in the forward pass, or in the loader's process."""

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        fault(("error", "kill", "stop", "sleep"), POSITION.step)
        return super().loss_sums(outputs, batch)

    def build_sources(self, data: Any, tokenizer: Tokenizer, seed: int) -> dict[str, Any]:
        sources = super().build_sources(data, tokenizer, seed)
        return sources | {"train": FaultySource(sources["train"])}


class SlowTask(PretrainingTask):
    """Task that trains slowly, so that a node can join before the run ends."""

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        time.sleep(0.1)
        return super().loss_sums(outputs, batch)


class FaultySource:
    """Source that fails when a batch is built."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def build(self, sequences: Any, step: int, shape: Any = None) -> PackedBatch:
        fault(("sleep_in_loader",), step + 1)
        return self.source.build(sequences, step, shape)


class SleepyTask(PretrainingTask):
    """Task that sleeps in each training step, as CLOZE_TEST_SLEEP says: "SECONDS RANK [RANK ...]"."""

    slept = -1

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        seconds, *ranks = os.environ["CLOZE_TEST_SLEEP"].split()
        if POSITION.step not in (None, self.slept) and str(process_info().rank) in ranks:
            self.slept = POSITION.step
            time.sleep(float(seconds))
        return super().loss_sums(outputs, batch)
