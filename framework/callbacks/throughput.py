"""Tokens a second, FLOPs utilisation, memory, and what the time that was not training went to."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import resource
import sys
import time

import lightning.pytorch as pl
import torch
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.timings import Timings
from framework.modules.encoder_module import EncoderModule

PROBE = "probe"
"""The lap of probes."""


class Throughput(pl.Callback):
    """Measures windows of steps; who logs asks for the window that ends now. Stands before what logs and saves.

    Attributes:
        train_seconds: Of the run: training and waiting for data, without validation and checkpoints.
        train_tokens: Real tokens of all ranks in that time.
    """

    def __init__(self, timings: Timings, flops_per_token: float | None = None, peak_flops: float | None = None) -> None:
        """Takes what utilisation is computed from.

        Args:
            timings: Shared with the callback that writes checkpoints.
            flops_per_token: Model FLOPs of forward and backward for one token; None: no utilisation is given.
            peak_flops: FLOPs a second of all devices together; None: not known.
        """
        self.timings = timings
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.train_seconds = 0.0
        self.train_tokens = 0
        self._earlier_seconds = 0.0
        self._start = time.perf_counter()
        self._counted_tokens = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Starts the first window."""
        self._start = time.perf_counter()
        self._counted_tokens = pl_module.num_tokens
        self.timings.restart()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: EncoderModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """Nothing but the loader stands between the end of a step and here."""
        self.timings.lap("data_wait")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Ends the step."""
        self.timings.lap("train")

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Ends what belongs to the step before."""
        self.timings.lap("train")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Ends validation."""
        self.timings.lap("validation")

    def take_window(self, pl_module: EncoderModule) -> dict[str, float]:
        """Closes the window and returns its numbers by metric key. Call after the device was waited for."""
        num_tokens = pl_module.num_tokens - self._counted_tokens
        self._counted_tokens += num_tokens
        self.timings.lap("train")
        seconds = self.timings.take()
        training = seconds["train"] + seconds["data_wait"]
        self.train_seconds += training
        self.train_tokens += num_tokens
        row = {
            "perf/tokens_per_second": num_tokens / training,
            "perf/data_wait_seconds": seconds["data_wait"],
            "perf/validation_seconds": seconds["validation"],
            **({"perf/probe_seconds": seconds[PROBE]} if PROBE in seconds else {}),
            "perf/checkpoint_stall_seconds": seconds["checkpoint_stall"],
            "perf/checkpoint_seconds": seconds["checkpoint"],
            "perf/memory_bytes": float(peak_memory_bytes(pl_module.device)),
            "perf/wall_seconds": self.wall_seconds(),
        }
        if self.flops_per_token and self.peak_flops:
            row["perf/mfu"] = row["perf/tokens_per_second"] * self.flops_per_token / self.peak_flops
        return row

    def wall_seconds(self) -> float:
        """Of the run up to now: this start and, up to the checkpoint that it began with, the earlier ones."""
        return self._earlier_seconds + time.perf_counter() - self._start

    def tokens_per_second(self) -> float | None:
        """Of the run so far, without validation and checkpoints; None before the first window was taken."""
        return self.train_tokens / self.train_seconds if self.train_seconds else None

    @override
    def state_dict(self) -> dict[str, float]:
        """What the next start must know."""
        return {
            "wall_seconds": self.wall_seconds(),
            "train_seconds": self.train_seconds,
            "train_tokens": self.train_tokens,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continues the count of an earlier start."""
        self._earlier_seconds = state_dict["wall_seconds"]
        self.train_seconds = state_dict["train_seconds"]
        self.train_tokens = int(state_dict["train_tokens"])


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the device, or of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
