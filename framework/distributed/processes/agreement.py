"""Ranks that must see the same: one does something for all, all hold the same facts, all see the same folder."""

import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from framework.errors import CheckpointError, DistributedError, FrameworkError

T = TypeVar("T")


class SharedPath(Protocol):
    """What is asked of a folder that all ranks share, and of a file in it: a part of `pathlib.Path`."""

    def __truediv__(self, name: str, /) -> "SharedPath":
        """A file in it."""

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Makes the folder."""

    def write_text(self, text: str, /, encoding: str) -> int:
        """Writes the file."""

    def read_text(self, encoding: str) -> str:
        """The text of the file."""

    def unlink(self, missing_ok: bool) -> None:
        """Deletes the file."""


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, by rank; without a process group the one value. Collective: all ranks must call.

    Args:
        value: This rank's.
        group: Of all ranks; None: the default group, which only the main thread may use.
    """
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def on_every_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Runs an action on each rank; where one fails, all fail. Collective: all ranks must call.

    Args:
        action: To be run.
        group: Of all ranks; None: the default group, which only the main thread may use.

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
    for rank, other in enumerate(gather(error, group)):
        if other is not None:
            other.rank = rank
            raise other
    return cast(T, result)


def first_rank_value(action: Callable[[], T]) -> T:
    """Runs an action on rank 0 and returns its result on all ranks. Collective: all ranks must call.

    Args:
        action: Function that runs on rank 0 only. Its result is pickled.

    Raises:
        FrameworkError: The action raised it on rank 0; raised on all ranks.
    """
    result: list[T] = []
    on_first_rank(lambda: result.append(action()))
    return gather(result)[0][0]


def on_first_rank(action: Callable[[], None], group: dist.ProcessGroup | None = None) -> None:
    """Runs an action on rank 0 and lets all ranks know how it went. Collective: all ranks must call.

    Args:
        action: To be run.
        group: Of all ranks; None: the default group, which only the main thread may use.

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
        dist.broadcast_object_list(outcome, src=0, group=group)
        error = outcome[0]
    if error is not None:
        error.rank = 0
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


def check_shared_folder(folder: SharedPath, wait_seconds: float = 5.0) -> None:
    """Checks that a folder can be written and that all ranks see the same: rank 0 writes a random word, all read it.

    Collective: all ranks must call.

    Args:
        folder: Made by rank 0 where it does not exist.
        wait_seconds: How long a rank looks for the word; network file systems show new files late.

    Raises:
        CheckpointError: It cannot be written.
        DistributedError: A rank does not see the word; the message names rank and host.
    """
    path = folder / ".shared_folder_check"
    word = gather(secrets.token_hex(16))[0]

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(word, encoding="utf-8")

    on_first_rank(write)
    deadline = time.monotonic() + wait_seconds
    seen = _reads(path, word)
    while not seen and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = _reads(path, word)
    by_rank = gather((seen, socket.gethostname()))
    on_first_rank(lambda: path.unlink(missing_ok=True))
    for rank, entry in enumerate(by_rank):
        if not entry[0]:
            raise DistributedError(
                f"Rank {rank} on host {entry[1]} does not see what rank 0 writes to {folder}; "
                "put it where all hosts share it."
            )


def _reads(path: SharedPath, word: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == word
    except OSError:
        return False
