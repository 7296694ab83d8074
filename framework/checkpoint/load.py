"""Reading a checkpoint, at any world size and under any strategy; an older one where the newest is damaged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from framework.checkpoint.integrity import Verify, verify
from framework.checkpoint.layout import DamagedError, complete_checkpoints, read_state, step_of
from framework.checkpoint.tensors import (
    MODEL_PREFIX,
    IndexReader,
    check_index,
    checkpoint_tensors,
    read_index,
    without_single_process_warning,
)
from framework.distributed.agreement import gather, on_every_rank
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer


@dataclass(frozen=True)
class Loaded:
    """What was loaded in the end.

    Attributes:
        folder: The checkpoint that was used.
        state: What its state.json holds.
        damaged: Newer checkpoints that could not be used, newest first, and what is wrong with each.
    """

    folder: Path
    state: dict[str, Any]
    damaged: dict[Path, str]


def load_newest_whole(newest: Path, model: nn.Module, optimizer: CombinedOptimizer, how: Verify = "sizes") -> Loaded:
    """Restores model and optimizer from a checkpoint or, where it is damaged, from the one before it, and so on.

    Collective: all ranks must call; all use the same.

    Args:
        newest: To be used if it is whole; older ones stand beside it.
        model: As `load_checkpoint` takes it.
        optimizer: Built on the model's parameters.
        how: What is compared with what was written.

    Raises:
        CheckpointError: None is whole, or one that is whole is of another model or optimizer.
    """
    damaged: dict[Path, str] = {}
    candidate: Path | None = newest
    while candidate is not None:
        try:
            return Loaded(candidate, load_checkpoint(candidate, model, optimizer, how), damaged)
        except DamagedError as error:
            damaged[candidate] = error.reason
        candidate = gather(_older(candidate))[0]  # what rank 0 sees
    reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
    raise CheckpointError(
        f"No checkpoint in {newest.parent} is whole ({reasons}); restore one of them, or start a new run.id."
    )


def _older(folder: Path) -> Path | None:
    """The complete checkpoint before one."""
    before = [path for path in complete_checkpoints(folder.parent) if step_of(path) < step_of(folder)]
    return before[-1] if before else None


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: CombinedOptimizer, how: Verify = "sizes"
) -> dict[str, Any]:
    """Restores model and optimizer in place. Collective: all ranks must call.

    Args:
        folder: A complete checkpoint, written at any world size under any strategy.
        model: Materialized, sharded as it will run.
        optimizer: Built on the model's parameters.
        how: What is compared with what was written; each rank checks its share of the files.

    Returns:
        What state.json holds.

    Raises:
        DamagedError: The checkpoint is not whole or not to be trusted, as any rank sees it; on all ranks. Model and
            optimizer may then hold parts of it.
        CheckpointError: It is of another model, optimizer or format.
    """
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    on_every_rank(lambda: verify(folder, how, rank, num_ranks))
    state, index = on_every_rank(lambda: (read_state(folder), read_index(folder)))
    tensors = checkpoint_tensors(model, optimizer)
    check_index(folder, index, tensors)
    _load(folder, tensors, no_dist=not dist.is_initialized())
    return state


def read_full_state(folder: Path) -> dict[str, Tensor]:
    """Reads the model's full parameters into CPU memory; needs no process group and no model.

    Args:
        folder: A complete checkpoint.

    Returns:
        Full tensors by parameter name (a tied parameter once, under its first name).

    Raises:
        DamagedError: The checkpoint is not whole or not to be trusted.
        CheckpointError: It is of another format.
    """
    verify(folder)
    read_state(folder)
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in read_index(folder).state_dict_metadata.items()
        if key.startswith(MODEL_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    _load(folder, tensors, no_dist=True)
    return {key.removeprefix(MODEL_PREFIX): tensor for key, tensor in tensors.items()}


def _load(folder: Path, tensors: dict[str, Tensor], no_dist: bool) -> None:
    try:
        with without_single_process_warning():
            load(tensors, storage_reader=IndexReader(folder), no_dist=no_dist)
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        reason = f"{folder} could not be read by rank {rank} ({type(cause).__name__}: {cause})"
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or not isinstance(cause, Exception):
            raise CheckpointError(f"{reason}; the checkpoint may be whole, start again.") from error
        raise DamagedError(reason) from error
