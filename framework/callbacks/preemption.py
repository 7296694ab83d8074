"""The planned leave: after a signal, or before a time limit, all ranks end at the same step, saved and ready to go on.

Lightning's own handlers are kept out: they broadcast inside the handler, which deadlocks when ranks stand at different
places of a step, and its loop broadcasts a flag and waits for the device at every batch (2.6).
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import logging
import signal
from collections.abc import Callable

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.throughput import PROBE
from framework.callbacks.time_limit import TimeLimit, process_age_seconds
from framework.callbacks.timings import Timings
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.process_group import collective_timeout
from framework.distributed.processes.stop_signals import StopSignals
from framework.modules.encoder_module import EncoderModule
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)

_MARGIN_SECONDS = 10.0
"""For what comes after the last checkpoint (plots, the logger's last words, the end of the process)."""

_MICROSECONDS = 1_000_000
_RANKS = 1 << 24
"""More than there will ever be; a signal and a rank travel as one number."""


class Preemption(pl.Callback):
    """Lets ranks agree between two steps whether to leave. Stands after what measures and before what saves.

    The agreement is one all-reduce of six integers on the host, over a process group of its own, so that no device is
    waited for. It is made after each step, but with steps shorter than `agree_every_seconds` only after several. A step
    with validation agrees after it. The step at which a run leaves is saved by the callback that saves; at least one
    step is made at each start, so that a run whose limit is too short still gets on.

    Attributes:
        why: "SIGTERM on rank 1" or "max_time 00:10:00 reached" once the ranks have agreed; None before.
    """

    def __init__(
        self,
        cadence: Cadence,
        timings: Timings,
        max_time: TimeLimit | None = None,
        timeout_seconds: float = 600.0,
        agree_every_seconds: float = 0.1,
        age_seconds: Callable[[], float] = process_age_seconds,
    ) -> None:
        """Takes when to leave.

        Args:
            cadence: Says which of the next steps validate and save.
            timings: Knows the longest step, validation and checkpoint so far, and the one that is being written.
            max_time: Of this start, counted from the start of its process; None: no limit.
            timeout_seconds: How long a rank waits for the others.
            agree_every_seconds: Shortest time between agreements, where steps are shorter; 0: after each step.
            age_seconds: Tells the age of the process.
        """
        self.cadence = cadence
        self.timings = timings
        self.max_time = max_time
        self.timeout_seconds = timeout_seconds
        self.agree_every_seconds = agree_every_seconds
        self.age_seconds = age_seconds
        self.why: str | None = None
        self._signals = StopSignals()
        self._group: dist.ProcessGroup | None = None
        self._next_step = 0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Takes over the signals and makes the process group of the agreement. Collective: all ranks must call."""
        # Private names of Lightning 2.6; without them its handlers act beside ours. A test sees it.
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        self._signals.install()
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=collective_timeout(self.timeout_seconds))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Plans the first agreement: after the first step."""
        self._next_step = trainer.global_step + 1

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Agrees where it is due, unless this step's validation comes first."""
        step = trainer.global_step
        if step >= self._next_step and not self.cadence.validates(step) and self._leaves(step):
            # A stop that is asked for makes Lightning validate once more, which a run that was not stopped did not.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Agrees after the validation of the step."""
        if self._leaves(trainer.global_step):
            trainer.should_stop = True

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Puts the handlers back after a run that came to its end.

        Not where the ranks leave before it: each rank is signalled, and one that hears of it late must not end of it
        while the others wait for it to leave.
        """
        if self.why is None or process_info().world_size == 1:
            self._signals.restore()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Puts the handlers back after a failure."""
        self._signals.restore()

    def _leaves(self, step: int) -> bool:
        """Agrees on whether the run ends after a step. Collective: all ranks must call.

        Everything is decided from the greatest values of all ranks, so that all decide the same: clocks differ.
        """
        longest, writing = self.timings.longest, self.timings.running("checkpoint")
        checkpoint = max(longest["checkpoint"], writing)
        seconds = [
            longest["data_wait"] + longest["train"],
            longest["validation"],
            longest[PROBE],
            checkpoint,
            # The leave's own save waits for one that is being written, which may only just have begun.
            checkpoint if writing else 0.0,
            self.age_seconds(),
        ]
        local = [self._signal_number(), *(round(value * _MICROSECONDS) for value in seconds)]
        number, *microseconds = self._greatest(local)
        step_seconds, validation, probe, checkpoint, in_flight, age = (value / _MICROSECONDS for value in microseconds)

        num_steps = max(1, int(self.agree_every_seconds / max(step_seconds, 1 / _MICROSECONDS)))
        self._next_step = step + num_steps
        if number:
            received, rank = divmod(number, _RANKS)
            self.why = f"{signal.Signals(received).name} on rank {_RANKS - 1 - rank}"
        elif self.max_time is not None:
            window = range(step + 1, self._next_step + 1)
            needed = num_steps * step_seconds + in_flight + checkpoint + _MARGIN_SECONDS
            needed += validation * any(self.cadence.validates(due) for due in window)
            needed += probe * any(self.cadence.probes(due) for due in window)
            needed += checkpoint * sum(self.cadence.saves(due) for due in window[:-1])
            if age + needed > self.max_time.seconds:
                self.why = f"max_time {self.max_time} reached"
        if self.why is not None:
            logger.info("leaves after this step: %s", self.why)
        return self.why is not None

    def _signal_number(self) -> int:
        """The signal and the rank in one number, the lower rank in the greater one; 0: there was no signal."""
        received = self._signals.received
        return 0 if received is None else received * _RANKS + _RANKS - 1 - process_info().rank

    def _greatest(self, values: list[int]) -> list[int]:
        tensor = torch.tensor(values, dtype=torch.int64)
        if self._group is not None:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in tensor.tolist()]


def _nothing() -> None:
    """Stands where Lightning would handle signals."""
