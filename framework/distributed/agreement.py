"""Ranks that must see the same: one does something for all, all hold the same facts, all see the same folder."""

import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist

from framework.errors import CheckpointError, DistributedError, FrameworkError

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """Every rank's value, by rank; without a process group the one value. Collective: all ranks must call."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_every_rank(action: Callable[[], T]) -> T:
    """Runs an action on each rank; where one fails, all fail. Collective: all ranks must call.

    Returns:
        This rank's result.

    Raises:
        FrameworkError: The one of the lowest rank that raised one, on all ranks.
    """
    result: T | None = None
    error: FrameworkError | None = None
    try:
        result = action()
    except FrameworkError as raised:
        error = raised
    for other in gather(error):
        if other is not None:
            raise other
    return cast(T, result)


def on_first_rank(action: Callable[[], None]) -> None:
    """Runs an action on rank 0 and lets all ranks know how it went. Collective: all ranks must call.

    Raises:
        FrameworkError: Rank 0's, on all ranks; an OSError of rank 0 becomes a CheckpointError.
    """
    error: FrameworkError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            action()
        except FrameworkError as raised:
            error = raised
        except OSError as raised:
            error = CheckpointError(f"The disk refused ({raised}); make room, or choose a folder that can be written.")
    if dist.is_initialized():
        outcome = [error]
        dist.broadcast_object_list(outcome, src=0)
        error = outcome[0]
    if error is not None:
        raise error


def check_agreement(facts: Mapping[str, str]) -> None:
    """Checks that all ranks hold the same facts, for example hashes of config, data and versions.

    Collective: all ranks must call; on a difference all ranks raise.

    Args:
        facts: A value for each name; the same names on every rank.

    Raises:
        DistributedError: A value differs; the message names it, its values and the ranks that hold them.
    """
    if not dist.is_initialized():
        return
    by_rank = gather(dict(facts))
    first = by_rank[0]
    for rank, other in enumerate(by_rank):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise DistributedError(
                    f"{name} is {first.get(name)} on rank 0 but {other.get(name)} on rank {rank}; "
                    "start every process with the same code, config and data."
                )


def check_shared_folder(folder: Path, wait_seconds: float = 5.0) -> None:
    """Checks that all ranks see the same folder: rank 0 writes a random word there and all read it.

    Collective: all ranks must call.

    Args:
        folder: Made by rank 0 where it does not exist.
        wait_seconds: How long a rank looks for the word; network file systems show new files late.

    Raises:
        DistributedError: A rank does not see the word; the message names rank and host.
    """
    if not dist.is_initialized():
        return
    path = folder / ".shared_folder_check"
    words = [secrets.token_hex(16)]
    dist.broadcast_object_list(words, src=0)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(words[0], encoding="utf-8")

    on_first_rank(write)
    deadline = time.monotonic() + wait_seconds
    seen = _reads(path, words[0])
    while not seen and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = _reads(path, words[0])
    by_rank = gather((seen, socket.gethostname()))
    on_first_rank(lambda: path.unlink(missing_ok=True))
    for rank, entry in enumerate(by_rank):
        if not entry[0]:
            raise DistributedError(
                f"Rank {rank} on host {entry[1]} does not see what rank 0 writes to {folder}; "
                "put the run folder on a file system that all hosts share."
            )


def _reads(path: Path, word: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == word
    except OSError:
        return False
