"""Writing a checkpoint: every rank its shards, then one rename and COMPLETE last; or nothing where the disk refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from framework.checkpoint.integrity import mark_complete
from framework.checkpoint.layout import (
    COMPLETE,
    FORMAT,
    STATE,
    step_folder,
    sync_folder,
    temporary_folder,
    write_json,
)
from framework.checkpoint.tensors import IndexWriter, checkpoint_tensors, without_single_process_warning
from framework.distributed.agreement import gather, on_first_rank
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer


class SaveError(CheckpointError):
    """The disk refused a checkpoint: nothing of it is left, and older ones are as they were."""


def save_checkpoint(
    checkpoints: Path, step: int, model: nn.Module, optimizer: CombinedOptimizer, extra: dict[str, Any]
) -> Path:
    """Writes the checkpoint after `step` completed steps. Collective: all ranks must call.

    Killed at any moment, it leaves either a whole checkpoint or one without COMPLETE, and all older ones as they were.

    Args:
        checkpoints: The run's folder of checkpoints, shared by all ranks.
        step: Completed steps.
        model: Parallelized or not; its parameters are saved.
        optimizer: Its state is saved.
        extra: Goes into state.json beside `format` and `step`.

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
                shutil.rmtree(leftover)
        temporary.mkdir(parents=True)

    def publish() -> None:
        write_json(temporary / STATE, {"format": FORMAT, "step": step, **extra})
        sync_folder(temporary)
        temporary.rename(target)
        sync_folder(checkpoints)
        mark_complete(target, checksums)

    try:
        _on_first_rank(target, prepare)
        written = _write_tensors(target, temporary, model, optimizer)
        checksums = {name: checksum for by_name in gather(written) for name, checksum in by_name.items()}
        _on_first_rank(target, publish)
    except SaveError:
        on_first_rank(lambda: _clear(temporary, target))
        raise
    return target


def _write_tensors(target: Path, temporary: Path, model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, str]:
    """Writes this rank's shards; returns the checksums of its files."""
    writer = IndexWriter(temporary)
    try:
        with without_single_process_warning():
            save(checkpoint_tensors(model, optimizer), storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if all(isinstance(each, OSError) for each, _ in error.failures.values()):
            raise _refusal(target, rank, cause) from error
        raise CheckpointError(
            f"{target} could not be written by rank {rank} ({type(cause).__name__}: {cause}), and not because of the "
            "disk; older checkpoints are whole, resume from the newest."
        ) from error
    return writer.checksums


def _on_first_rank(target: Path, action: Callable[[], None]) -> None:
    """Runs an action on rank 0; an error of its disk is a SaveError on all ranks."""

    def run() -> None:
        try:
            action()
        except OSError as error:
            raise _refusal(target, 0, error) from error

    on_first_rank(run)


def _refusal(target: Path, rank: int, cause: BaseException) -> SaveError:
    return SaveError(
        f"{target} could not be written: the disk refused rank {rank} ({cause}); make room, or choose a folder that "
        "can be written. Older checkpoints are whole."
    )


def _clear(temporary: Path, target: Path) -> None:
    """Removes what a refused save left, to give the room back; what cannot be removed is no checkpoint either."""
    shutil.rmtree(temporary, ignore_errors=True)
    if not (target / COMPLETE).exists():
        shutil.rmtree(target, ignore_errors=True)
