"""Reading a checkpoint, at any world size and under any strategy."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from framework.checkpoint.layout import read_state, verify
from framework.checkpoint.tensors import (
    MODEL_PREFIX,
    IndexReader,
    check_index,
    checkpoint_tensors,
    read_index,
    without_single_process_warning,
)
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer


def load_checkpoint(folder: Path, model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, Any]:
    """Restores model and optimizer in place. Collective: all ranks must call.

    Args:
        folder: A complete checkpoint, written at any world size under any strategy.
        model: Materialized, sharded as it will run.
        optimizer: Built on the model's parameters.

    Returns:
        What state.json holds.

    Raises:
        CheckpointError: The checkpoint is not whole, not to be trusted, or of another model or optimizer.
    """
    verify(folder)
    state = read_state(folder)
    tensors = checkpoint_tensors(model, optimizer)
    check_index(folder, read_index(folder), tensors)
    _load(folder, tensors, no_dist=not dist.is_initialized())
    return state


def read_full_state(folder: Path) -> dict[str, Tensor]:
    """Reads the model's full parameters into CPU memory; needs no process group and no model.

    Args:
        folder: A complete checkpoint.

    Returns:
        Full tensors by parameter name (a tied parameter once, under its first name).

    Raises:
        CheckpointError: The checkpoint is not whole or not to be trusted.
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
        raise CheckpointError(
            f"{folder} could not be read by rank {rank} ({cause}); use an older checkpoint."
        ) from error
