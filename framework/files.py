"""Files that survive a kill and a power cut, and a lock between processes. Local and shared folders only.

A lock goes with the process that holds it, however that process ends.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is whole or not there: beside it, flushed, then renamed.

    Without the flush a power cut can leave an empty file under the new name.

    Raises:
        OSError: The disk refused; an earlier file is as it was.
    """
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that may be damaged or made to harm.

    Raises:
        ValueError: The text is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a folder with all that it holds survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


_HELD: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _leave_to_the_parent() -> None:
    """Closes the locks in a forked child: a loader process that outlives a killed parent would keep them."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock for the time of the block.

    Args:
        path: The file that stands for it. It names its holder (`holder_of`) and is removed afterwards.
        wait: Wait for the process that holds it.

    Yields:
        False where another process holds the lock and `wait` is False.

    Raises:
        OSError: The file cannot be made, or its file system knows no locks.
    """
    descriptor = _acquire(path, wait)
    if descriptor is None:
        yield False
        return
    _HELD.add(descriptor)
    try:
        yield True
    finally:
        if descriptor in _HELD:  # not in a forked child
            _HELD.discard(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path, wait: bool) -> int | None:
    """Opens and locks the file and writes down who holds it; None where another process does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        is_held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_held = _is_at(descriptor, path)
        except BlockingIOError:
            return None
        finally:
            if not is_held:
                os.close(descriptor)
        if is_held:
            _write_holder(descriptor)
            return descriptor


def _write_holder(descriptor: int) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    text = f"process {os.getpid()} on host {socket.gethostname()}, since {now} UTC"
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.fsync(descriptor)  # another host may ask


def holder_of(path: Path) -> str:
    """Names the process that holds a lock: "process 17 on host a, since ..."."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def _is_at(descriptor: int, path: Path) -> bool:
    # Who held the lock before removed its file; a lock on a file that nobody can find keeps nobody away.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
