"""Writing a checkpoint: every rank its shards, then one rename and COMPLETE last; or nothing where the disk refuses.

Behind a URL there is no rename, and COMPLETE alone makes it one.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from framework.checkpoint.integrity import mark_complete
from framework.checkpoint.layout import (
    COMPLETE,
    FORMAT,
    STATE,
    step_folder,
    temporary_folder,
    write_json,
)
from framework.checkpoint.storage import Location, put_in_place, remove_tree
from framework.checkpoint.tensors import IndexWriter, checkpoint_tensors, ignore_single_process_warning
from framework.distributed.processes.agreement import gather, on_every_rank, on_first_rank
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer
from framework.optim.shards import local


class SaveError(CheckpointError):
    """The disk refused a checkpoint: nothing of it is left, and older ones are as they were."""


def save_checkpoint(
    checkpoints: Location, step: int, model: nn.Module, optimizer: CombinedOptimizer, extra: dict[str, Any]
) -> Location:
    """Writes model and optimizer as they are, as `write_checkpoint` does. Collective: all ranks must call."""
    return write_checkpoint(checkpoints, step, checkpoint_tensors(model, optimizer), extra)


def write_checkpoint(
    checkpoints: Location,
    step: int,
    tensors: Mapping[str, Tensor],
    extra: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> Location:
    """Writes the checkpoint after `step` completed steps. Collective: all ranks must call.

    Killed at any moment, it leaves either a whole checkpoint or one without COMPLETE, and all older ones as they were.

    Args:
        checkpoints: The run's folder of checkpoints, shared by all ranks.
        step: Completed steps.
        tensors: Of `checkpoint_tensors`, or copies of them; nothing may change them until the end.
        extra: Goes into state.json beside `format` and `step`.
        group: Of all ranks, on the host; another thread than the main one needs a group of its own. None: the default
            group.

    Returns:
        The folder.

    Raises:
        SaveError: The disk refused, on any rank; on all ranks.
        CheckpointError: The step is there already, or it failed for another reason; on all ranks.
    """
    target, temporary = step_folder(checkpoints, step), temporary_folder(checkpoints, step)

    def prepare() -> None:
        if (target / COMPLETE).exists():
            raise CheckpointError(
                f"{target} is complete already and is never overwritten; resume from it or move it away."
            )
        for leftover in (temporary, target):
            if leftover.exists():
                remove_tree(leftover)
        temporary.mkdir(parents=True)

    def publish() -> None:
        write_json(temporary / STATE, {"format": FORMAT, "step": step, **extra})
        put_in_place(temporary, target)
        mark_complete(target, checksums)

    try:
        _on_first_rank(target, prepare, group)
        written = _write_tensors(target, temporary, tensors, group)
        checksums = {name: checksum for by_name in gather(written, group) for name, checksum in by_name.items()}
        _on_first_rank(target, publish, group)
    except SaveError:
        on_first_rank(lambda: _clear(temporary, target), group)
        raise
    return target


def _write_tensors(
    target: Location, temporary: Location, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> dict[str, str]:
    """Writes this rank's shards; returns the checksums of its files."""
    writer = IndexWriter(temporary)
    try:
        ignore_single_process_warning()
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if all(isinstance(each, OSError) for each, _ in error.failures.values()):
            raise _refusal(target, rank, cause) from error
        raise CheckpointError(
            f"{target} could not be written by rank {rank} ({type(cause).__name__}: {cause}), and not because of the "
            "disk; older checkpoints are whole, resume from the newest."
        ) from error
    return writer.checksums


def _on_first_rank(target: Location, action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Runs an action on rank 0; an error of its disk is a SaveError on all ranks."""

    def run() -> None:
        try:
            action()
        except OSError as error:
            raise _refusal(target, 0, error) from error

    on_first_rank(run, group)


def _refusal(target: Location, rank: int, cause: BaseException) -> SaveError:
    return SaveError(
        f"{target} could not be written: the disk refused rank {rank} ({cause}); make room, or choose a folder that "
        "can be written. Older checkpoints are whole."
    )


def _clear(temporary: Location, target: Location) -> None:
    """Removes what a refused save left, to give the room back; what cannot be removed is no checkpoint either."""
    for leftover in (temporary, target):
        with contextlib.suppress(OSError):
            if not (leftover / COMPLETE).exists():
                remove_tree(leftover, ignore_errors=True)


def check_finite(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Checks weights and optimizer state, each rank its own part; waits for the device once.

    Collective: all ranks must call. An update from a finite gradient can still overflow.

    Args:
        tensors: Of `checkpoint_tensors`, or copies of them.
        group: Of all ranks, on the host; None: the default group.

    Raises:
        CheckpointError: A value is not finite on any rank; on all ranks.
    """

    def check() -> None:
        parts = {name: local(tensor) for name, tensor in tensors.items()}
        measured = {name: _is_finite(part) for name, part in parts.items() if part.numel()}
        flags = torch.stack(list(measured.values())).tolist() if measured else []
        for name, is_finite in zip(measured, flags, strict=True):
            if not is_finite:
                raise CheckpointError(
                    f"{name} is no longer finite although loss and gradient norm of every step were, so no checkpoint "
                    "is written; begin a new run.id with a lower learning rate, or with trainer.gradient_clip. Older "
                    "checkpoints are whole."
                )

    on_every_rank(check, group)


def _is_finite(tensor: Tensor) -> Tensor:
    """() bool; the extremes need no copy of the tensor, and NaN is an extreme."""
    least, greatest = tensor.detach().aminmax()
    return torch.isfinite(least) & torch.isfinite(greatest)
