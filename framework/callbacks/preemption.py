"""Planned stop: after a signal or before a time limit, all ranks save and stop at the same step; the run can resume.

Lightning's own handlers are disabled. They broadcast inside the handler, which deadlocks if ranks are at different
points of a step. Lightning's loop also broadcasts a flag and waits for the device at every batch (2.6).
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

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
"""Time for the work after the last checkpoint: plots, the end of the loggers, the end of the process."""

_MICROSECONDS = 1_000_000
_RANKS = 1 << 24
"""Upper bound of the number of ranks. A signal and a rank are encoded in one number."""


class Preemption(pl.Callback):
    """Lets the ranks agree between two steps whether to stop.

    Its position is after the callbacks that measure and before the one that saves. The agreement is one all-reduce of
    eight integers on the host over its own process group, so it waits for no device. It happens after each step, or
    after several if the steps since the last agreement took less than `agree_every_seconds` on average. If a step has a
    validation, it happens after the validation. The checkpointing callback saves the step at which the run stops. Each
    start makes at least one step, so that a run whose limit is too short still makes progress.

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
        """Creates the callback.

        Args:
            cadence: Schedule of the next validations, probes and checkpoints.
            timings: Lap timer with the time of all steps, the longest step, validation and checkpoint so far, and the
                time of a running write.
            max_time: Time limit of this start, counted from the start of its process; None: no limit.
            timeout_seconds: Time limit for waiting for the other ranks.
            agree_every_seconds: Shortest time between agreements if steps are shorter; 0: agree after each step.
            age_seconds: Function that returns the age of the process.
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
        self._agreed_step = 0
        self._agreed_seconds = 0.0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Installs signal handlers and creates the process group of the agreement. Collective: all ranks must call."""
        # Private names of Lightning 2.6. If they change, its handlers act beside ours; a test detects that.
        trainer._signal_connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]
        self._signals.install()
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=collective_timeout(self.timeout_seconds))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Schedules the first agreement after the first step."""
        self._next_step = trainer.global_step + 1
        self._agreed_step, self._agreed_seconds = trainer.global_step, 0.0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Agrees if an agreement is due, unless this step's validation comes first."""
        step = trainer.global_step
        if step >= self._next_step and not self.cadence.validates(step) and self._agrees_to_stop(step):
            # A requested stop makes Lightning validate once more, which an uninterrupted run would not do here.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Agrees after the validation of the step."""
        if self._agrees_to_stop(trainer.global_step):
            trainer.should_stop = True

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Restores the signal handlers at the end of a run.

        They are kept if several ranks stop early. Every rank gets the signal, and one that gets it late must not die of
        it while the others wait for it.
        """
        if self.why is None or process_info().world_size == 1:
            self._signals.restore()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Restores the signal handlers after a failure."""
        self._signals.restore()

    def _agrees_to_stop(self, step: int) -> bool:
        """Agrees on whether the run stops after a step. Collective: all ranks must call.

        The clocks of ranks differ. All decisions use the maxima over the ranks, so that all ranks decide the same.
        """
        longest, writing = self.timings.longest, self.timings.running("checkpoint")
        checkpoint = max(longest["checkpoint"], writing)
        seconds = [
            self._recent_step_seconds(step),
            longest["data_wait"] + longest["train"],
            longest["validation"],
            longest[PROBE],
            checkpoint,
            # The save of the stop waits for a running write, which may only just have begun.
            checkpoint if writing else 0.0,
            self.age_seconds(),
        ]
        local = [self._signal_number(), *(round(value * _MICROSECONDS) for value in seconds)]
        number, *microseconds = self._greatest(local)
        recent, longest_step, validation, probe, checkpoint, in_flight, age = (
            value / _MICROSECONDS for value in microseconds
        )
        num_steps = max(1, int(self.agree_every_seconds / max(recent, 1 / _MICROSECONDS)))
        self._next_step = step + num_steps
        if number:
            received, rank = divmod(number, _RANKS)
            self.why = f"{signal.Signals(received).name} on rank {_RANKS - 1 - rank}"
        elif self.max_time is not None:
            window = range(step + 1, self._next_step + 1)
            needed = (num_steps - 1) * recent + longest_step + in_flight + checkpoint + _MARGIN_SECONDS
            needed += validation * any(self.cadence.validates(due) for due in window)
            needed += probe * any(self.cadence.probes(due) for due in window)
            needed += checkpoint * sum(self.cadence.saves(due) for due in window[:-1])
            if age + needed > self.max_time.seconds:
                self.why = f"max_time {self.max_time} reached"
        if self.why is not None:
            logger.info("the run stops after this step: %s", self.why)
        return self.why is not None

    def _recent_step_seconds(self, step: int) -> float:
        """Returns the mean seconds of the steps since the last agreement. The first step of a start is the slowest."""
        total = self.timings.total["data_wait"] + self.timings.total["train"]
        mean = (total - self._agreed_seconds) / max(1, step - self._agreed_step)
        self._agreed_step, self._agreed_seconds = step, total
        return mean

    def _signal_number(self) -> int:
        """Encodes the signal and the rank in one number, a lower rank in a larger one; 0: no signal was received."""
        received = self._signals.received
        return 0 if received is None else received * _RANKS + _RANKS - 1 - process_info().rank

    def _greatest(self, values: list[int]) -> list[int]:
        if self._group is None:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in tensor.tolist()]


def _do_nothing() -> None:
    """Replaces the signal handling of Lightning."""
