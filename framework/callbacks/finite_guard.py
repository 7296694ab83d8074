"""What happens at a step whose loss or gradient is not finite: no update on any rank, then stop, skip or roll back.

Skipping and rolling back both count the step: a step is a pure function, and done again it would meet the same batch.
Rolling back takes weights and optimizer from the newest checkpoint, but goes on with the next step, so that the batches
between the checkpoint and here, which led to it, are not met again.
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from rich.console import Console
from torch.optim import Optimizer
from typing_extensions import override

from framework.batch import DUMMY_SEQUENCE_ID, PackedBatch
from framework.callbacks.checkpointing import Checkpointing
from framework.callbacks.resume import load_whole
from framework.callbacks.run_log import RunLog
from framework.checkpoint.layout import complete_checkpoints, step_of
from framework.checkpoint.storage import Location
from framework.distributed.processes.agreement import gather
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.rank_log import RUN_LOGGER

SKIPPED_STEPS = "optim/skipped_steps"
"""Metric key, in the row of each step that was not finite: steps of the run whose updates the weights do not have."""

OnNonFinite = Literal["stop", "skip", "roll_back"]


logger = logging.getLogger(RUN_LOGGER)


@dataclass(frozen=True)
class NonFinite:
    """What a run does about steps that are not finite.

    Attributes:
        action: "stop" ends the run; "skip" goes on without the update; "roll_back" goes on with the weights and the
            optimizer of the newest checkpoint.
        max_steps: How many such steps the whole run may meet before it ends.
    """

    action: OnNonFinite = "stop"
    max_steps: int = 10


STOP = NonFinite()


class FiniteGuard(pl.Callback):
    """Looks at the loss and the gradient norm of each step, between the backward and the update.

    Both are global, so all ranks decide the same without another message, and weights and optimizer state stay as they
    were. Cost: the host reads one boolean a step. On a CPU that is free; on a GPU the queue runs empty just before the
    update, and what is lost is the time to launch it.

    The checkpoints to roll back to are those at multiples of `checkpoint_every_n_steps`, and no others: a run that left
    early and came again has more of them than one that did not, and both must go on alike. While there is none, a step
    is only skipped.

    Attributes:
        skipped: First and last step, counted from 1, of each window of steps whose updates the weights do not have;
            each ends with the step that was not finite. Kept in state.json.
    """

    def __init__(
        self,
        non_finite: NonFinite,
        checkpointing: Checkpointing,
        run_log: RunLog,
        console: Console | None = None,
    ) -> None:
        """Takes what to do.

        Args:
            non_finite: The action, and how often.
            checkpointing: Knows the run's checkpoints, and which of them every run of this config has.
            run_log: Gets a row for each step that was not finite.
            console: Where to say so; None: standard output.
        """
        self.non_finite = non_finite
        self.checkpointing = checkpointing
        self.run_log = run_log
        self.console = console
        self.skipped: list[tuple[int, int]] = []

    @property
    def num_skipped_steps(self) -> int:
        """Steps of the run whose updates the weights do not have."""
        return sum(last - first + 1 for first, last in self.skipped)

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: EncoderModule, optimizer: Optimizer) -> None:
        """Decides whether the update of this step is applied; nothing else does.

        Raises:
            FrameworkError: The step is not finite, and the run is to stop there or has met too many of them.
            CheckpointError: No checkpoint to roll back to is whole.
        """
        if is_finite(pl_module):
            return
        step = trainer.global_step + 1
        loss, grad_norm = (float(pl_module.step_metrics[key]) for key in ("train/loss", "optim/grad_norm"))
        what = f"the loss is {loss:g} and the gradient norm {grad_norm:g}"
        where = where_not_finite(pl_module)
        self._check_may_go_on(step, what, where)

        pl_module.optimizer.hold_update()
        first, consequence = step, "this update is skipped"
        if self.non_finite.action == "roll_back":
            first, consequence = self._roll_back(trainer, step, pl_module)
        self.skipped.append((first, step))
        self.run_log.add({SKIPPED_STEPS: float(self.num_skipped_steps)}, at_once=True)
        if trainer.is_global_zero:
            count = f"{len(self.skipped)} of at most {self.non_finite.max_steps} such steps"
            text = f"step {step}: {what}; {consequence} ({count}). {where}"
            logger.warning(text)
            print_line(text, self.console)

    @override
    def state_dict(self) -> dict[str, list[list[int]]]:
        """The skipped steps; empty where there are none."""
        return {"skipped_steps": [list(window) for window in self.skipped]} if self.skipped else {}

    @override
    def load_state_dict(self, state_dict: dict[str, list[list[int]]]) -> None:
        """Goes on with the skipped steps of the earlier start."""
        self.skipped = [(first, last) for first, last in state_dict["skipped_steps"]]

    def _check_may_go_on(self, step: int, what: str, where: str) -> None:
        if self.non_finite.action == "stop":
            raise FrameworkError(
                f"Step {step}: {what}, but both must be finite; the update was not applied. {where} Look at those "
                "sequences, and begin a new run.id with a lower learning rate or a longer warm-up, or go on with this "
                "run from its last checkpoint with trainer.on_non_finite=skip or roll_back."
            )
        if len(self.skipped) >= self.non_finite.max_steps:
            raise FrameworkError(
                f"Step {step}: {what}, in step number {len(self.skipped) + 1} of this run that is not finite, but "
                f"trainer.max_non_finite_steps is {self.non_finite.max_steps}; the update was not applied. {where} "
                "Begin a new run.id with a lower learning rate or a longer warm-up, or raise that number and go on "
                "from the last checkpoint."
            )

    def _roll_back(self, trainer: pl.Trainer, step: int, pl_module: EncoderModule) -> tuple[int, str]:
        """Restores weights and optimizer, if there is a checkpoint. Collective: all ranks must call.

        Returns:
            The first step that counts as skipped, and what to tell.
        """
        timings = self.run_log.throughput.timings
        with timings.interruption("checkpoint_stall"):
            self.checkpointing.wait(trainer)  # else it would be chance whether the newest counts
        newest = gather(self._newest_regular())[0]  # what rank 0 sees
        if newest is None:
            return step, "this update is skipped, as there is no checkpoint to roll back to yet"
        timings.lap("train")
        loaded = load_whole(newest, self.checkpointing.folder, pl_module, "checksums", True, self.console)
        timings.lap("checkpoint")
        restored = loaded.state["step"]
        already = self.skipped[-1][1] if self.skipped else 0
        skipped = f"steps {restored + 1} to {step} are" if restored + 1 < step else f"step {step} is"
        told = f"weights and optimizer are those of step {restored} again, and {skipped} skipped"
        return max(restored, already) + 1, told

    def _newest_regular(self) -> Location | None:
        """The newest complete checkpoint that a run has which was never interrupted."""
        every = self.checkpointing.cadence.checkpoint_every_n_steps
        complete = complete_checkpoints(self.checkpointing.folder)
        return next((path for path in reversed(complete) if every and step_of(path) % every == 0), None)


def is_finite(pl_module: EncoderModule) -> bool:
    """True where loss and gradient norm of the running step are; waits for the device."""
    loss, grad_norm = pl_module.step_metrics["train/loss"], pl_module.step_metrics["optim/grad_norm"]
    return bool(torch.isfinite(loss) & torch.isfinite(grad_norm))


_SHOWN_RANKS = 4
_SHOWN_RANGES = 20


def where_not_finite(pl_module: EncoderModule) -> str:
    """Names the sequences of the micro-batches whose own loss is not finite, by rank. Collective: all ranks must call.

    Where every micro-batch's loss is finite, the fault came up in the backward pass, whose gradients are added over
    ranks before anyone sees them: then it names all sequences of the step.
    """
    assert pl_module.step_batch is not None
    micro_batches = pl_module.step_batch.micro_batches
    finite = torch.isfinite(pl_module.step_sums).all(dim=1).tolist()
    bad = [micro for micro, is_fine in zip(micro_batches, finite, strict=True) if not is_fine]
    by_rank = gather((_ids(bad), _ids(micro_batches)))
    blamed = {rank: ids for rank, (ids, _) in enumerate(by_rank) if ids}
    if not blamed:
        everything = sorted(sequence_id for _, ids in by_rank for sequence_id in ids)
        return (
            f"Every sequence's loss is finite, the gradient is not; the step held sequence ids {_ranges(everything)}."
        )
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return f"The loss is not finite in the micro-batches of sequence ids {_ranges(blamed[0])}."
    shown = [f"on rank {rank}, sequence ids {_ranges(blamed[rank])}" for rank in sorted(blamed)[:_SHOWN_RANKS]]
    more = f"; and on {len(blamed) - _SHOWN_RANKS} more ranks" if len(blamed) > _SHOWN_RANKS else ""
    return f"The loss is not finite in micro-batches {'; '.join(shown)}{more}."


def _ids(micro_batches: Sequence[PackedBatch]) -> list[int]:
    ids = [sequence_id for micro in micro_batches for sequence_id in micro.sequence_ids.tolist()]
    return sorted(sequence_id for sequence_id in ids if sequence_id != DUMMY_SEQUENCE_ID)


def _ranges(ids: list[int]) -> str:
    """Sorted numbers in words: "3, 5 to 8"."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:_SHOWN_RANGES]]
    more = f" and others up to {ids[-1]}" if len(ranges) > _SHOWN_RANGES else ""
    return ", ".join(shown) + more
