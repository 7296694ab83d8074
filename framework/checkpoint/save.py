"""Writes checkpoints: each rank writes its shards, then rank 0 renames the folder and writes COMPLETE last.

If the disk fails, nothing remains of the checkpoint. Storage behind a URL has no rename; COMPLETE alone marks the end.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
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
from framework.checkpoint.storage import Location, remove_tree, rename_to_final
from framework.checkpoint.tensors import IndexWriter, ignore_single_process_warning
from framework.distributed.processes.agreement import gather, on_every_rank, on_first_rank
from framework.errors import CheckpointError
from framework.optim.shards import local


class SaveError(CheckpointError):
    """The disk could not store a checkpoint. Its partial files are removed, and older checkpoints are unchanged."""


def write_checkpoint(
    checkpoints: Location,
    step: int,
    tensors: Mapping[str, Tensor],
    extra: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> Location:
    """Writes the checkpoint after `step` completed steps. Collective: all ranks must call.

    If the process is killed at any moment, the checkpoint is either complete or lacks COMPLETE. Older checkpoints are
    unchanged.

    Args:
        checkpoints: Folder of the run's checkpoints, shared by all ranks.
        step: Number of completed steps.
        tensors: Result of `checkpoint_tensors`, or copies of it. They must not change until this function returns.
        extra: Values written to state.json in addition to `format` and `step`.
        group: CPU process group of all ranks; None for the default group. A thread other than the main one needs a
            group of its own.

    Returns:
        Folder of the checkpoint.

    Raises:
        SaveError: The disk failed on any rank; raised on all ranks.
        CheckpointError: The step exists already, or the save failed for another reason; raised on all ranks.
    """
    target, temporary = step_folder(checkpoints, step), temporary_folder(checkpoints, step)

    def prepare() -> None:
        if (target / COMPLETE).exists():
            raise CheckpointError(
                f"{target} is complete already. Complete checkpoints are never overwritten. Resume from it, or move "
                "it away."
            )
        for leftover in (temporary, target):
            if leftover.exists():
                remove_tree(leftover)
        temporary.mkdir(parents=True)

    def publish() -> None:
        write_json(temporary / STATE, {"format": FORMAT, "step": step, **extra})
        rename_to_final(temporary, target)
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
    """Writes this rank's shards, and returns the checksums of its files by name."""
    writer = IndexWriter(temporary)
    try:
        ignore_single_process_warning()
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if all(isinstance(each, OSError) for each, _ in error.failures.values()):
            raise _refusal(target, rank, cause) from error
        raise CheckpointError(
            f"{target} could not be written by rank {rank} ({type(cause).__name__}: {cause}). The disk is not the "
            "cause. Older checkpoints are intact. Resume from the newest."
        ) from error
    return writer.checksums


def _on_first_rank(target: Location, action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Runs an action on rank 0. Its OSError becomes a SaveError on all ranks."""

    def run() -> None:
        try:
            action()
        except OSError as error:
            raise _refusal(target, 0, error) from error

    on_first_rank(run, group)


def _refusal(target: Location, rank: int, cause: BaseException) -> SaveError:
    return SaveError(
        f"{target} could not be written: the disk refused rank {rank} ({cause}). Older checkpoints are intact. Free "
        "disk space, or choose a writable folder."
    )


def _clear(temporary: Location, target: Location) -> None:
    """Removes the partial files of a failed save to free disk space. Files that cannot be removed are left."""
    for leftover in (temporary, target):
        with contextlib.suppress(OSError):
            if not (leftover / COMPLETE).exists():
                remove_tree(leftover, ignore_errors=True)


def check_finite(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Checks that weights and optimizer state are finite, because an update from a finite gradient can overflow.

    Collective: all ranks must call. Each rank checks its own shards, with one device synchronization.

    Args:
        tensors: Result of `checkpoint_tensors`, or copies of it.
        group: CPU process group of all ranks; None for the default group.

    Raises:
        CheckpointError: A value is not finite on any rank; raised on all ranks.
    """

    def check() -> None:
        parts = {name: local(tensor) for name, tensor in tensors.items()}
        measured = {name: _is_finite(part) for name, part in parts.items() if part.numel()}
        flags = torch.stack(list(measured.values())).tolist() if measured else []
        for name, is_finite in zip(measured, flags, strict=True):
            if not is_finite:
                raise CheckpointError(
                    f"{name} is no longer finite although loss and gradient norm were finite at every step. No "
                    "checkpoint is written, and older checkpoints are intact. Begin a new run.id with a lower learning "
                    "rate or with trainer.gradient_clip."
                )

    on_every_rank(check, group)


def _is_finite(tensor: Tensor) -> Tensor:
    """Returns a () bool. The minimum and maximum need no copy of the tensor, and both are NaN if any value is."""
    least, greatest = tensor.detach().aminmax()
    return torch.isfinite(least) & torch.isfinite(greatest)
