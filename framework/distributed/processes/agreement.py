"""Agreement between ranks: gathered values, actions whose errors reach all ranks, equal facts, a shared folder."""

import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from framework.errors import CheckpointError, DistributedError, FrameworkError

T = TypeVar("T")


class SharedPath(Protocol):
    """Interface of a folder that all ranks share, and of a file in it: a subset of `pathlib.Path`."""

    def __truediv__(self, name: str, /) -> "SharedPath":
        """Returns the path of a file in the folder."""

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Creates the folder."""

    def write_text(self, text: str, /, encoding: str) -> int:
        """Writes text to the file and returns the number of characters."""

    def read_text(self, encoding: str) -> str:
        """Returns the text of the file."""

    def unlink(self, missing_ok: bool) -> None:
        """Deletes the file."""


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Returns the values of all ranks, indexed by rank. Collective: all ranks must call.

    Without a process group the list contains only this value.

    Args:
        value: Value of this rank. It is pickled.
        group: Process group of all ranks. None: the default group, which only the main thread may use.
    """
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def on_every_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Runs an action on each rank. If it fails on one rank, all ranks raise. Collective: all ranks must call.

    Args:
        action: Function that runs on every rank.
        group: Process group of all ranks. None: the default group, which only the main thread may use.

    Returns:
        Result of this rank.

    Raises:
        FrameworkError: The action raised it on at least one rank. All ranks raise the error of the lowest such rank.
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
    """Runs an action on rank 0 and raises its error on all ranks. Collective: all ranks must call.

    Args:
        action: Function that runs on rank 0 only.
        group: Process group of all ranks. None: the default group, which only the main thread may use.

    Raises:
        FrameworkError: The action raised it on rank 0. All ranks raise it. An OSError becomes a CheckpointError.
    """
    error: FrameworkError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            action()
        except FrameworkError as raised:
            error = raised
        except OSError as raised:
            error = CheckpointError(
                f"A file operation of rank 0 failed ({raised}). The folder must be writable and have free space. Free "
                "some space, or choose another folder."
            )
    if dist.is_initialized():
        outcome = [error]
        dist.broadcast_object_list(outcome, src=0, group=group)
        error = outcome[0]
    if error is not None:
        error.rank = 0
        raise error


def check_agreement(facts: Mapping[str, str]) -> None:
    """Checks that all ranks hold the same facts, for example hashes of config, data and versions.

    Collective: all ranks must call. If a value differs, all ranks raise.

    Args:
        facts: Values by name, with the same names on every rank.

    Raises:
        DistributedError: A value differs. The message names the fact, both values and their ranks.
    """
    if not dist.is_initialized():
        return
    by_rank = gather(dict(facts))
    first = by_rank[0]
    for rank, other in enumerate(by_rank):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise DistributedError(
                    f"{name} is {first.get(name)} on rank 0 but {other.get(name)} on rank {rank}. "
                    "All ranks must use the same code, config and data. Start every process with the same ones."
                )


def check_shared_folder(folder: SharedPath, wait_seconds: float = 5.0) -> None:
    """Checks that a folder is writable and that all ranks share it. Collective: all ranks must call.

    Rank 0 writes a random token to a file in the folder, and all ranks read the file.

    Args:
        folder: Folder to check. Rank 0 creates it if it does not exist.
        wait_seconds: Time for which a rank retries to read the token; network file systems show new files late.

    Raises:
        CheckpointError: Rank 0 cannot write to the folder.
        DistributedError: A rank does not read the token. The message names its rank and host.
    """
    path = folder / ".shared_folder_check"
    token = gather(secrets.token_hex(16))[0]

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(token, encoding="utf-8")

    on_first_rank(write)
    deadline = time.monotonic() + wait_seconds
    seen = _contains(path, token)
    while not seen and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = _contains(path, token)
    by_rank = gather((seen, socket.gethostname()))
    on_first_rank(lambda: path.unlink(missing_ok=True))
    for rank, entry in enumerate(by_rank):
        if not entry[0]:
            raise DistributedError(
                f"Rank {rank} on host {entry[1]} does not see the file that rank 0 wrote to {folder}. All ranks must "
                "share this folder. Choose a folder on a file system that all hosts mount."
            )


def _contains(path: SharedPath, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False
