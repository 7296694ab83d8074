"""Loads checkpoints at any world size and under any strategy; falls back to an older one if the newest is damaged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from framework.checkpoint.integrity import Verify, verify
from framework.checkpoint.layout import (
    COMPLETE,
    DamagedError,
    Weights,
    complete_checkpoints,
    newest_complete,
    read_state,
    step_of,
)
from framework.checkpoint.storage import Location
from framework.checkpoint.tensors import (
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    IndexReader,
    check_index,
    checkpoint_tensors,
    ignore_single_process_warning,
    read_index,
)
from framework.distributed.processes.agreement import gather, on_every_rank
from framework.errors import CheckpointError
from framework.optim.combined import AVERAGE, CombinedOptimizer

_MOST_REMOVED = 20
"""Number of checkpoints that a running training may remove before a reader raises an error."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Result of `load_newest_intact`.

    Attributes:
        folder: Checkpoint that was read.
        state: Result of reading it.
        damaged: Newer checkpoints that are damaged, newest first, each with the reason.
    """

    folder: Location
    state: T
    damaged: dict[Location, str]

    @property
    def damage_message(self) -> str | None:
        """Returns a line on the damaged checkpoints and the one that is used instead; None if none is damaged."""
        reasons = "; ".join(f"{folder.name} is damaged ({reason})" for folder, reason in self.damaged.items())
        return f"{reasons}; {self.folder.name} is used instead" if self.damaged else None


def load_newest_intact(newest: Location, read: Callable[[Location], T], falls_back: bool = True) -> Loaded[T]:
    """Reads the newest checkpoint that is not damaged.

    If a running training removes a checkpoint while it is read, the newest one is read instead.

    Collective if there is a process group: all ranks must call. All ranks use the same checkpoint.

    Args:
        newest: Checkpoint to try first; its parent folder holds the others.
        read: Function that reads a checkpoint, for example with `load_checkpoint`. With a process group, it raises the
            same error on all ranks.
        falls_back: True to read an older checkpoint if one is damaged; False to raise an error.

    Raises:
        DamagedError: The checkpoint is damaged, and `falls_back` is False.
        CheckpointError: All checkpoints are damaged, or an intact one belongs to another model or optimizer.
    """
    damaged: dict[Location, str] = {}
    num_removed = 0
    candidate: Location | None = newest
    while candidate is not None:
        try:
            return Loaded(candidate, read(candidate), damaged)
        except DamagedError as error:
            if not falls_back:
                raise
            # Rank 0 decides for all ranks.
            newer = gather(_replacement(candidate))[0]
            if newer is None:
                damaged[candidate] = error.reason
                candidate = gather(next(reversed(_before(candidate)), None))[0]
                continue
        candidate = newer
        num_removed += 1
        if num_removed > _MOST_REMOVED:
            raise CheckpointError(
                f"The training that writes to {newest.parent} removed {num_removed} checkpoints while they were read. "
                "A checkpoint must exist until it is read. Wait until the training has ended, or train with a larger "
                "trainer.keep_last."
            )
    reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
    raise CheckpointError(
        f"No checkpoint in {newest.parent} is intact ({reasons}). Restore one of them, or start a new run.id."
    )


def _replacement(folder: Location) -> Location | None:
    """Returns the newest checkpoint if a running training has removed this one; None if this one still exists."""
    newest = None if (folder / COMPLETE).is_file() else newest_complete(folder.parent)
    return newest if newest is not None and step_of(newest) > step_of(folder) else None


def _before(folder: Location) -> list[Location]:
    """Returns the complete checkpoints before this one, oldest first."""
    return [path for path in complete_checkpoints(folder.parent) if step_of(path) < step_of(folder)]


def load_checkpoint(
    folder: Location, model: nn.Module, optimizer: CombinedOptimizer, how: Verify = "checksums"
) -> dict[str, Any]:
    """Restores model and optimizer in place. Collective: all ranks must call.

    Args:
        folder: Complete checkpoint, written at any world size under any strategy.
        model: Materialized model, sharded as it will run.
        optimizer: Optimizer of the model's parameters.
        how: Depth of the integrity check. Each rank checks its share of the files.

    Returns:
        Content of state.json.

    Raises:
        DamagedError: The checkpoint is damaged or not trustworthy on any rank; raised on all ranks. Model and optimizer
            may be partly overwritten.
        CheckpointError: The checkpoint belongs to another model or optimizer, or has another format.
    """
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    on_every_rank(lambda: verify(folder, how, rank, num_ranks))
    state, index = on_every_rank(lambda: (read_state(folder), read_index(folder)))
    tensors = checkpoint_tensors(model, optimizer)
    check_index(folder, index, tensors)
    optimizer.before_change()
    _load(folder, tensors, no_dist=not dist.is_initialized(), index=index)
    return state


def read_full_state(folder: Location, weights: Weights = "auto", average_last: int = 1) -> dict[str, Tensor]:
    """Reads the model's full parameters into CPU memory. Needs no process group and no model.

    Args:
        folder: Complete checkpoint.
        weights: "raw" for the trained weights, "ema" for their moving average, "auto" for the moving average if the run
            kept one.
        average_last: Number of checkpoints to average, this one and those before it. The arithmetic mean is computed
            one tensor at a time, in fp64.

    Returns:
        Full tensors by parameter name (a tied parameter once, under its first name).

    Raises:
        DamagedError: A checkpoint is damaged or not trustworthy.
        CheckpointError: A checkpoint has another format or no moving average, or there are too few checkpoints.
    """
    folders = _with_those_before(folder, average_last)
    entries = [_parameter_entries(each, weights) for each in folders]
    if len(folders) == 1:
        return _read(folder, entries[0])
    means = {}
    for name in entries[0]:
        total: Tensor | float = 0.0
        for each, its_entries in zip(folders, entries, strict=True):
            tensor = _read(each, {name: its_entries[name]})[name]
            total = tensor.double() + total
        assert isinstance(total, Tensor)
        means[name] = total.div_(len(folders)).to(tensor.dtype)
    return means


def _with_those_before(folder: Location, count: int) -> list[Location]:
    """Returns this checkpoint and those before it, `count` in all, oldest first."""
    before = _before(folder) if count > 1 else []
    if len(before) + 1 < count:
        raise CheckpointError(
            f"average_last={count}, but {folder.parent} holds {len(before) + 1} complete checkpoints up to "
            f"{folder.name}. Average fewer, or train with trainer.checkpoint_every_n_steps and "
            f"trainer.keep_last={count}."
        )
    return [*before[len(before) + 1 - count :], folder]


def _parameter_entries(folder: Location, weights: Weights) -> dict[str, tuple[str, TensorStorageMetadata]]:
    """Verifies a checkpoint; returns the key to load and the index entry of each parameter."""
    verify(folder)
    read_state(folder)
    entries = read_index(folder).state_dict_metadata
    averages = {key for key in entries if key.startswith(OPTIMIZER_PREFIX) and key.endswith(f".{AVERAGE}")}
    if weights == "ema" and not averages:
        raise CheckpointError(
            f"{folder} holds no moving average of the weights, because trainer.ema_decay was null. Use weights=raw."
        )
    chosen = {}
    for key, entry in entries.items():
        if key.startswith(MODEL_PREFIX) and isinstance(entry, TensorStorageMetadata):
            name = key.removeprefix(MODEL_PREFIX)
            average = f"{OPTIMIZER_PREFIX}{name}.{AVERAGE}"
            # A frozen parameter has no average: its weight never changes.
            chosen[name] = (average if weights != "raw" and average in averages else key, entry)
    return chosen


def _read(folder: Location, entries: Mapping[str, tuple[str, TensorStorageMetadata]]) -> dict[str, Tensor]:
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, (_, entry) in entries.items()}
    _load(folder, {key: tensors[name] for name, (key, _) in entries.items()}, no_dist=True)
    return tensors


def _load(folder: Location, tensors: dict[str, Tensor], no_dist: bool, index: Metadata | None = None) -> None:
    index = index or read_index(folder)
    try:
        ignore_single_process_warning()
        load(tensors, storage_reader=IndexReader(folder, index), no_dist=no_dist)
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        reason = f"{folder} could not be read by rank {rank} ({type(cause).__name__}: {cause})"
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or not isinstance(cause, Exception):
            raise CheckpointError(f"{reason}. The checkpoint may be intact. Start again.") from error
        raise DamagedError(reason) from error
