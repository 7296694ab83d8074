"""Writing a checkpoint: every rank its shards, then one rename and COMPLETE last."""

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from framework.checkpoint.layout import (
    COMPLETE,
    FORMAT,
    STATE,
    mark_complete,
    step_folder,
    sync_folder,
    temporary_folder,
    write_json,
)
from framework.checkpoint.tensors import IndexWriter, checkpoint_tensors, without_single_process_warning
from framework.distributed.agreement import on_first_rank
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer


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
        CheckpointError: The step is there already, or the disk refused; on all ranks.
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
        mark_complete(target)

    on_first_rank(prepare)
    try:
        with without_single_process_warning():
            save(
                checkpoint_tensors(model, optimizer),
                storage_writer=IndexWriter(temporary, single_file_per_rank=True, sync_files=True),
                no_dist=not dist.is_initialized(),
            )
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise CheckpointError(
            f"{target} could not be written by rank {rank} ({cause}); make room or choose another folder. "
            "Older checkpoints are whole."
        ) from error
    on_first_rank(publish)
    return target
