"""Handles steps whose loss or gradient is not finite: no rank applies the update; the run stops, skips or rolls back.

Skipping and rolling back both count the step. A step is a pure function, so a repeated step would get the same batch.
Rolling back restores weights and optimizer from the newest checkpoint, but continues with the next step. The batches
between the checkpoint and this step, which led to the fault, are not used again.
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from framework.batch import DUMMY_SEQUENCE_ID, PackedBatch, StepBatch
from framework.callbacks.checkpointing import Checkpointing
from framework.callbacks.resume import load_undamaged
from framework.callbacks.run_log import RunLog
from framework.checkpoint.layout import complete_checkpoints, step_of
from framework.checkpoint.storage import Location
from framework.distributed.processes.agreement import gather
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from framework.modules.resume import set_progress
from framework.tracking.console import print_line
from framework.tracking.rank_log import RUN_LOGGER

SKIPPED_STEPS = "optim/skipped_steps"
"""Metric key in the row of each step that was not finite: number of steps whose updates the weights do not contain."""

OnNonFinite = Literal["stop", "skip", "roll_back"]


logger = logging.getLogger(RUN_LOGGER)


@dataclass(frozen=True)
class NonFinite:
    """Configured reaction to steps that are not finite.

    Attributes:
        action: "stop" ends the run; "skip" continues without the update; "roll_back" continues with the weights and the
            optimizer of the newest checkpoint.
        max_steps: Number of such steps that the whole run tolerates before it ends.
    """

    action: OnNonFinite = "stop"
    max_steps: int = 10


STOP = NonFinite()


@dataclass(frozen=True)
class _Step:
    """Results of a step, kept until the host has read whether it is finite.

    Attributes:
        number: Step counted from 1.
        metrics: `StepRunner.metrics`.
        batch: `StepRunner.batch`.
        sums: `StepRunner.sums`.
    """

    number: int
    metrics: dict[str, Tensor | float]
    batch: StepBatch
    sums: Tensor


class _HeldFlag:
    """Copy of the optimizer's flag in pinned host memory. Reading it waits for this copy, not for later work."""

    def __init__(self, flag: Tensor) -> None:
        self._copy = flag.to("cpu", non_blocking=True, copy=True)  # torch pins the result
        self._is_copied = torch.cuda.current_stream(flag.device).record_event() if flag.is_cuda else None

    def read(self) -> bool:
        """Returns True if the device held the update."""
        if self._is_copied is not None:
            self._is_copied.synchronize()
        return bool(self._copy.numpy())


class FiniteGuard(pl.Callback):
    """Checks the loss and the gradient norm of each step between the backward and the update.

    Both are global, so all ranks decide the same without communication, and weights and optimizer state stay unchanged.

    If the optimizer `holds_on_device`, the device decides, and the host reads the decision before the update of the
    next step, while the device computes its gradients. It reads it at the end of the step if a row, a probe, a
    validation, a checkpoint or the end of the run is due. A rolled back run computes those gradients again, so the
    steps are the same as if the host read each decision at once. Other optimizers and fp16 wait before each update.

    A run rolls back only to checkpoints at multiples of `checkpoint_every_n_steps`. An interrupted and resumed run has
    more checkpoints than an uninterrupted one, and both must continue alike. Before the first such checkpoint, a step
    is only skipped.

    Attributes:
        skipped: First and last step, counted from 1, of each window of steps whose updates the weights do not contain.
            Each window ends with the step that was not finite. Stored in state.json.
    """

    def __init__(
        self,
        non_finite: NonFinite,
        checkpointing: Checkpointing,
        run_log: RunLog,
        console: Console | None = None,
    ) -> None:
        """Creates the callback.

        Args:
            non_finite: Action, and the largest number of such steps.
            checkpointing: Checkpointing callback, which has the folder and the cadence of the run's checkpoints.
            run_log: Run log, which gets a row for each step that was not finite.
            console: Console for messages; None: standard output.
        """
        self.non_finite = non_finite
        self.checkpointing = checkpointing
        self.run_log = run_log
        self.console = console
        self.skipped: list[tuple[int, int]] = []
        self._unread: tuple[_Step, _HeldFlag] | None = None

    @property
    def num_skipped_steps(self) -> int:
        """Number of steps whose updates the weights do not contain."""
        return sum(last - first + 1 for first, last in self.skipped)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Lets the module read the last step's decision before it updates or saves weights."""
        pl_module.runner.settle_last_step = lambda: self._settle(trainer, pl_module, is_ended=True)

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: EncoderModule, optimizer: Optimizer) -> None:
        """Decides whether the update of this step is applied, or keeps the decision of the device.

        Raises:
            FrameworkError: The step is not finite, and the action is "stop" or the limit of such steps is exceeded.
            CheckpointError: All checkpoints to roll back to are damaged.
        """
        runner = pl_module.runner
        assert runner.batch is not None
        step = _Step(trainer.global_step + 1, runner.metrics, runner.batch, runner.sums)
        if pl_module.holds_on_device:
            self._unread = step, _HeldFlag(pl_module.optimizer.hold_flag)
        elif not is_finite(pl_module):
            pl_module.optimizer.hold_update()
            self._handle(trainer, pl_module, step)
            self.run_log.add({}, at_once=True)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Reads the decision of the device if anything that depends on it follows this step."""
        step, cadence = trainer.global_step, self.checkpointing.cadence
        is_due = cadence.logs(step) or cadence.probes(step) or cadence.validates(step) or cadence.saves(step)
        if is_due or trainer.should_stop:
            self._settle(trainer, pl_module, is_ended=False)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Reads the decision of the device if another callback stopped the run after this one."""
        self._settle(trainer, pl_module, is_ended=True)

    def _settle(self, trainer: pl.Trainer, pl_module: EncoderModule, is_ended: bool) -> bool:
        """Handles the last completed step if the device held its update. Collective: all ranks must call.

        Args:
            trainer: Trainer, whose step is the last completed one.
            pl_module: Module of the run.
            is_ended: True if the callbacks of that step have run, so that its row must be written here.

        Returns:
            True if weights and optimizer were restored.
        """
        unread, self._unread = self._unread, None
        if unread is None or not unread[1].read():
            return False
        step = unread[0]
        is_restored = self._handle(trainer, pl_module, step)
        if is_ended:
            self.run_log.write_earlier(trainer, step.metrics, pl_module.device)
        else:
            self.run_log.add({}, at_once=True)
        return is_restored

    def _handle(self, trainer: pl.Trainer, pl_module: EncoderModule, step: _Step) -> bool:
        """Ends the run, or records and reports the skipped step; returns True if weights and optimizer are restored."""
        loss, grad_norm = (float(step.metrics[key]) for key in ("train/loss", "optim/grad_norm"))
        problem = f"the loss is {loss:g} and the gradient norm is {grad_norm:g}"
        origin = describe_origin(step.batch, step.sums)
        if self.non_finite.action == "stop" or len(self.skipped) >= self.non_finite.max_steps:
            set_progress(trainer, step.number - 1)  # Lightning may have counted the step
            raise FrameworkError(self._refusal(step.number, problem, origin))
        restored = self._roll_back(trainer, pl_module) if self.non_finite.action == "roll_back" else None
        first, consequence = self._window(step.number, restored)
        self.skipped.append((first, step.number))
        self.run_log.add({SKIPPED_STEPS: float(self.num_skipped_steps)})
        if trainer.is_global_zero:
            count = f"{len(self.skipped)} of at most {self.non_finite.max_steps} such steps"
            text = f"step {step.number}: {problem}. {consequence} ({count}). {origin}"
            logger.warning(text)
            print_line(text, self.console)
        return restored is not None

    @override
    def state_dict(self) -> dict[str, list[list[int]]]:
        """Returns the windows of skipped steps; empty if there are none."""
        return {"skipped_steps": [list(window) for window in self.skipped]} if self.skipped else {}

    @override
    def load_state_dict(self, state_dict: dict[str, list[list[int]]]) -> None:
        """Restores the windows of skipped steps of the earlier start."""
        self.skipped = [(first, last) for first, last in state_dict["skipped_steps"]]

    def _refusal(self, step: int, problem: str, origin: str) -> str:
        """Returns the error that ends the run."""
        if self.non_finite.action == "stop":
            return (
                f"Step {step}: {problem}. Both must be finite, so the update was not applied. {origin} Inspect these "
                "sequences. Start a new run.id with a lower learning rate or a longer warm-up, or resume this run from "
                "its last checkpoint with trainer.on_non_finite=skip or roll_back."
            )
        return (
            f"Step {step}: {problem}. It is number {len(self.skipped) + 1} of this run's non-finite steps, but "
            f"trainer.max_non_finite_steps is {self.non_finite.max_steps}. The update was not applied. {origin} "
            "Start a new run.id with a lower learning rate or a longer warm-up, or raise "
            "trainer.max_non_finite_steps and resume from the last checkpoint."
        )

    def _roll_back(self, trainer: pl.Trainer, pl_module: EncoderModule) -> int | None:
        """Restores weights and optimizer; returns the checkpoint's step, or None if there is no checkpoint.

        Collective: all ranks must call.
        """
        timings = self.run_log.throughput.timings
        with timings.interruption("checkpoint_stall"):
            self.checkpointing.wait(trainer)  # otherwise it would be random whether the newest one counts
        newest = gather(self._newest_regular())[0]  # as rank 0 sees it
        if newest is None:
            return None
        timings.lap("train")
        loaded = load_undamaged(newest, self.checkpointing.folder, pl_module, "checksums", True, self.console)
        timings.lap("checkpoint")
        return loaded.state["step"]

    def _window(self, step: int, restored: int | None) -> tuple[int, str]:
        """Returns the first step that counts as skipped, and a description of the consequence."""
        if restored is None:
            reason = ", because there is no checkpoint to roll back to yet"
            return step, f"This update is skipped{reason if self.non_finite.action == 'roll_back' else ''}"
        last_skipped = self.skipped[-1][1] if self.skipped else 0
        skipped = f"steps {restored + 1} to {step} are" if restored + 1 < step else f"step {step} is"
        consequence = f"Weights and optimizer are restored from step {restored}, and {skipped} skipped"
        return max(restored, last_skipped) + 1, consequence

    def _newest_regular(self) -> Location | None:
        """Returns the newest complete checkpoint that an uninterrupted run would have too."""
        every = self.checkpointing.cadence.checkpoint_every_n_steps
        complete = complete_checkpoints(self.checkpointing.folder)
        return next((path for path in reversed(complete) if every and step_of(path) % every == 0), None)


def is_finite(pl_module: EncoderModule) -> bool:
    """Returns True if loss and gradient norm of the current step are finite. Waits for the device."""
    metrics = pl_module.runner.metrics
    loss, grad_norm = metrics["train/loss"], metrics["optim/grad_norm"]
    return math.isfinite(loss) and math.isfinite(grad_norm)


_SHOWN_RANKS = 4
_SHOWN_RANGES = 20


def describe_origin(batch: StepBatch, sums: Tensor) -> str:
    """Names the sequences of the micro-batches whose loss is not finite, by rank. Collective: all ranks must call.

    If every micro-batch's loss is finite, the fault arose in the backward pass. Its gradients are summed over ranks
    before they can be checked, so the text names all sequences of the step.

    Args:
        batch: This rank's share of the step.
        sums: (micro-batches, terms) float64 loss sums of this rank.
    """
    micro_batches = batch.micro_batches
    finite = torch.isfinite(sums).all(dim=1).tolist()
    bad = [micro for micro, is_good in zip(micro_batches, finite, strict=True) if not is_good]
    by_rank = gather((_ids(bad), _ids(micro_batches)))
    affected = {rank: ids for rank, (ids, _) in enumerate(by_rank) if ids}
    if not affected:
        all_ids = sorted(sequence_id for _, ids in by_rank for sequence_id in ids)
        return (
            "The loss of every sequence is finite, but the gradient is not. "
            f"The step has sequence ids {_ranges(all_ids)}."
        )
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return f"The loss is not finite in the micro-batches of sequence ids {_ranges(affected[0])}."
    parts = [f"on rank {rank}, sequence ids {_ranges(affected[rank])}" for rank in sorted(affected)[:_SHOWN_RANKS]]
    more = f"; and on {len(affected) - _SHOWN_RANKS} more ranks" if len(affected) > _SHOWN_RANKS else ""
    return f"The loss is not finite in micro-batches {'; '.join(parts)}{more}."


def _ids(micro_batches: Sequence[PackedBatch]) -> list[int]:
    ids = [sequence_id for micro in micro_batches for sequence_id in micro.sequence_ids.tolist()]
    return sorted(sequence_id for sequence_id in ids if sequence_id != DUMMY_SEQUENCE_ID)


def _ranges(ids: list[int]) -> str:
    """Returns sorted numbers as text, such as "3, 5 to 8"."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:_SHOWN_RANGES]]
    more = f" and others up to {ids[-1]}" if len(ranges) > _SHOWN_RANGES else ""
    return ", ".join(parts) + more
