"""Reading a checkpoint, at any world size and under any strategy; an older one where the newest is damaged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

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

Weights = Literal["auto", "raw", "ema"]
"""Which weights of a run are meant: its moving average where it kept one, the trained ones, the moving average."""

_MOST_REMOVED = 20
"""Number of checkpoints that a running training may remove before a reader gives up."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What was loaded in the end.

    Attributes:
        folder: The checkpoint that was used.
        state: What was read from it.
        damaged: Newer checkpoints that could not be used, newest first, and what is wrong with each.
    """

    folder: Location
    state: T
    damaged: dict[Location, str]

    @property
    def remark(self) -> str | None:
        """Which checkpoints are damaged and which one is used instead; None where the newest is whole."""
        reasons = "; ".join(f"{folder.name} is damaged ({reason})" for folder, reason in self.damaged.items())
        return f"{reasons}; {self.folder.name} is used instead" if self.damaged else None


def newest_whole(newest: Location, read: Callable[[Location], T], falls_back: bool = True) -> Loaded[T]:
    """Reads a checkpoint or, where it is damaged, the one before it, and so on.

    If a running training removes it in the meantime, the newest one is read.

    Collective where there is a process group: all ranks must call; all use the same.

    Args:
        newest: Checkpoint to try first; its parent folder holds the others.
        read: Reads a checkpoint, for example with `load_checkpoint`; with a process group it raises on all ranks alike.
        falls_back: False where this very checkpoint was asked for, so that no other may take its place.

    Raises:
        DamagedError: It is damaged, and no other may take its place.
        CheckpointError: None is whole, or one that is whole is of another model or optimizer.
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
                candidate = gather(_older(candidate))[0]
                continue
        candidate = newer
        num_removed += 1
        if num_removed > _MOST_REMOVED:
            raise CheckpointError(
                f"the training that writes to {newest.parent} removed {num_removed} checkpoints while they were read. "
                "A checkpoint must exist until it is read. Wait until the training has ended, or train with a larger "
                "trainer.keep_last."
            )
    reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
    raise CheckpointError(
        f"No checkpoint in {newest.parent} is whole ({reasons}); restore one of them, or start a new run.id."
    )


def _replacement(folder: Location) -> Location | None:
    """Returns the newest checkpoint if a running training has removed this one; None if it still exists."""
    newest = None if (folder / COMPLETE).is_file() else newest_complete(folder.parent)
    return newest if newest is not None and step_of(newest) > step_of(folder) else None


def _older(folder: Location) -> Location | None:
    """The complete checkpoint before one."""
    return next(reversed(_before(folder)), None)


def _before(folder: Location) -> list[Location]:
    """The complete checkpoints before one, oldest first."""
    return [path for path in complete_checkpoints(folder.parent) if step_of(path) < step_of(folder)]


def load_checkpoint(
    folder: Location, model: nn.Module, optimizer: CombinedOptimizer, how: Verify = "checksums"
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
    optimizer.before_change()
    _load(folder, tensors, no_dist=not dist.is_initialized(), index=index)
    return state


def read_full_state(folder: Location, weights: Weights = "auto", average_last: int = 1) -> dict[str, Tensor]:
    """Reads the model's full parameters into CPU memory; needs no process group and no model.

    Args:
        folder: A complete checkpoint.
        weights: "raw": the trained ones; "ema": their moving average; "auto": the moving average where one was kept.
        average_last: More than 1: the arithmetic mean over this checkpoint and those before it, so many in all. They
            are read one tensor at a time, and added up in fp64.

    Returns:
        Full tensors by parameter name (a tied parameter once, under its first name).

    Raises:
        DamagedError: A checkpoint is not whole or not to be trusted.
        CheckpointError: One is of another format, holds no moving average, or there are fewer checkpoints.
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
    """A checkpoint and those before it, `count` in all."""
    before = _before(folder) if count > 1 else []
    if len(before) + 1 < count:
        raise CheckpointError(
            f"average_last={count}, but {folder.parent} holds {len(before) + 1} complete checkpoints up to "
            f"{folder.name}; average fewer, or train with trainer.checkpoint_every_n_steps and "
            f"trainer.keep_last={count}."
        )
    return [*before[len(before) + 1 - count :], folder]


def _parameter_entries(folder: Location, weights: Weights) -> dict[str, tuple[str, TensorStorageMetadata]]:
    """Returns the key and shape to load for each parameter, from a checkpoint whose bytes are verified."""
    verify(folder)
    read_state(folder)
    entries = read_index(folder).state_dict_metadata
    averages = {key for key in entries if key.startswith(OPTIMIZER_PREFIX) and key.endswith(f".{AVERAGE}")}
    if weights == "ema" and not averages:
        raise CheckpointError(
            f"{folder} holds no moving average of the weights, since trainer.ema_decay was null; use weights=raw."
        )
    chosen = {}
    for key, entry in entries.items():
        if key.startswith(MODEL_PREFIX) and isinstance(entry, TensorStorageMetadata):
            name = key.removeprefix(MODEL_PREFIX)
            average = f"{OPTIMIZER_PREFIX}{name}.{AVERAGE}"
            # A frozen parameter has no average and needs none.
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
            raise CheckpointError(f"{reason}; the checkpoint may be whole, start again.") from error
        raise DamagedError(reason) from error
