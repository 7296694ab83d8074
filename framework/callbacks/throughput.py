"""Measures tokens per second, FLOPs utilisation, memory, and the time spent outside of training."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import resource
import sys
import time
from collections.abc import Callable

import lightning.pytorch as pl
import torch
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.timings import Timings
from framework.modules.encoder_module import EncoderModule

PROBE = "probe"
"""Name of the lap of probes."""


class Throughput(pl.Callback):
    """Measures windows of steps. The run log closes a window with `take_window`.

    Its position is before the callbacks that log and save.

    Attributes:
        train_seconds: Seconds of the run spent on training and waiting for data, without validation and checkpoints.
        train_tokens: Real tokens of all ranks in that time.
    """

    def __init__(
        self,
        timings: Timings,
        count_flops: Callable[[StepBatch], float] | None = None,
        peak_flops: float | None = None,
    ) -> None:
        """Creates the callback.

        Args:
            timings: Lap timer, shared with the callback that writes checkpoints.
            count_flops: Function that returns the model FLOPs of forward and backward of this rank's share of a step;
                None: no utilisation is reported. Other ranks count as many FLOPs per token.
            peak_flops: FLOPs per second of all devices together; None: unknown.
        """
        self.timings = timings
        self.count_flops = count_flops
        self.peak_flops = peak_flops
        self.train_seconds = 0.0
        self.train_tokens = 0
        self._earlier_seconds = 0.0
        self._start = time.perf_counter()
        self._counted_tokens = 0
        self._flops = self._own_tokens = 0.0
        self._num_steps = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Starts the first window."""
        self._start = time.perf_counter()
        self._counted_tokens = pl_module.runner.num_tokens
        self.timings.restart()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: EncoderModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """Records the time since the end of the last step as waiting for the data loader."""
        self.timings.lap("data_wait")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Ends the lap of the step."""
        self._num_steps += 1
        if self.count_flops is not None and self.peak_flops is not None:
            self._flops += self.count_flops(batch)
            self._own_tokens += sum(micro_batch.num_tokens for micro_batch in batch.micro_batches)
        self.timings.lap("train")

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Ends the lap of the step before the validation."""
        self.timings.lap("train")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Ends the lap of the validation."""
        self.timings.lap("validation")

    def take_window(self, total_tokens: int, device: torch.device) -> dict[str, float]:
        """Closes the window and returns its values by metric key. Synchronize the device before the call.

        Args:
            total_tokens: Real tokens of all ranks trained on so far in the run.
            device: Device of the run.
        """
        num_tokens = total_tokens - self._counted_tokens
        self._counted_tokens = total_tokens
        self.timings.lap("train")
        seconds = self.timings.take()
        training = seconds["train"] + seconds["data_wait"]
        self.train_seconds += training
        self.train_tokens += num_tokens
        row = {
            "perf/tokens_per_second": num_tokens / training,
            "perf/step_seconds": training / max(1, self._num_steps),
            "perf/data_wait_seconds": seconds["data_wait"],
            "perf/validation_seconds": seconds["validation"],
            **({"perf/probe_seconds": seconds[PROBE]} if PROBE in seconds else {}),
            "perf/checkpoint_stall_seconds": seconds["checkpoint_stall"],
            "perf/checkpoint_seconds": seconds["checkpoint"],
            "perf/memory_bytes": float(peak_memory_bytes(device)),
            "perf/wall_seconds": self.wall_seconds(),
        }
        if self.peak_flops is not None and self._own_tokens:
            flops_per_token = self._flops / self._own_tokens
            row["perf/mfu"] = row["perf/tokens_per_second"] * flops_per_token / self.peak_flops
        self._flops = self._own_tokens = 0.0
        self._num_steps = 0
        return row

    def wall_seconds(self) -> float:
        """Returns the seconds of the run so far: of this start, and of earlier starts up to the resumed checkpoint."""
        return self._earlier_seconds + time.perf_counter() - self._start

    def tokens_per_second(self) -> float | None:
        """Returns the training speed without validation and checkpoints; None before the first window."""
        return self.train_tokens / self.train_seconds if self.train_seconds else None

    @override
    def state_dict(self) -> dict[str, float]:
        """Returns the seconds and tokens of the run so far, for the next start."""
        return {
            "wall_seconds": self.wall_seconds(),
            "train_seconds": self.train_seconds,
            "train_tokens": self.train_tokens,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restores the seconds and tokens of an earlier start."""
        self._earlier_seconds = state_dict["wall_seconds"]
        self.train_seconds = state_dict["train_seconds"]
        self.train_tokens = int(state_dict["train_tokens"])


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak memory in bytes: of the device, or of this process if the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
