"""A lock between processes, on a file; it goes with the process that holds it, however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock for the time of the block.

    Args:
        path: The file that stands for it; it is removed afterwards.
        wait: Wait for the process that holds it.

    Yields:
        False where another process holds the lock and `wait` is False.

    Raises:
        OSError: The file cannot be made, or its file system knows no locks.
    """
    while True:
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if _is_at(file, path):
                try:
                    yield True
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_at(file: IO[bytes], path: Path) -> bool:
    # Who held the lock before removed its file; a lock on a file that nobody can find keeps nobody away.
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
