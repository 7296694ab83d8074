"""Writes files that survive a kill and a power cut, computes checksums, and locks out other processes.

Only checksums work on remote files; everything else requires a local or shared folder. A lock ends with the process
that holds it, even after `kill -9`.
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Protocol

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Files of a tokenizer folder; each of them may be absent."""

_PROBE_BYTES = 1 << 16
_SHOWN_OF_NAME = 40
"""Characters of the file name that a temporary name repeats. File systems limit a name to 255 bytes."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` when the block ends without an error.

    The content is written under a temporary name, flushed to disk, and renamed. Without the flush, a power cut can
    leave an empty file under the final name.

    Raises:
        OSError: Writing failed; an existing file is unchanged.
    """
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file completely or not at all, as UTF-8 (see `replacing`)."""
    with replacing(path) as file:
        file.write(text.encode())


def temporary_path(path: Path) -> Path:
    """Returns the name under which this process writes a file or folder before it is renamed to `path`.

    Resolve a symlink at `path` first. Then the symlink is kept, and its target is replaced.
    """
    return path.with_name(f".{path.name[:_SHOWN_OF_NAME]}.{os.getpid()}.tmp")


def check_room(file: IO[str]) -> None:
    """Writes to a new file and empties it again, which reveals a full disk before the content is computed.

    Raises:
        OSError: The disk is full.
    """
    file.write("\0" * _PROBE_BYTES)
    file.flush()
    os.fsync(file.fileno())
    file.seek(0)
    file.truncate()


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


class _File(Protocol):
    """Local path, or URL of a remote file."""

    def open(self, mode: Literal["rb"], /) -> Any: ...

    def read_text(self, encoding: str) -> str: ...


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that may be damaged or malicious.

    Raises:
        ValueError: The text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json_object(path: _File) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
        OSError: The file cannot be read.
        ValueError: Its content is not a JSON object.
    """
    value = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} instead of an object")
    return value


def new_digest() -> hashlib.blake2b:
    """Returns an empty BLAKE2b hash (RFC 7693) of 16 bytes, the checksum of checkpoints and exports."""
    return hashlib.blake2b(digest_size=16)


def checksum(path: _File) -> str:
    """Returns the checksum of a file's bytes.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_digest).hexdigest()


def sync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flushes a folder and all of its content to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


_HELD: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _close_inherited_locks() -> None:
    """Closes the locks in a forked child; otherwise a loader process that outlives its parent would hold them."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock during the block.

    Args:
        path: Lock file. It names the holder (`holder_of`) and is removed afterwards.
        wait: Wait for a process that holds the lock.

    Yields:
        True, or False if another process holds the lock and `wait` is False.

    Raises:
        OSError: The file cannot be created, or its file system does not support locks.
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
    """Opens and locks the file and records the holder; returns None if another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
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
    with suppress(OSError):  # on a full disk the lock works, but does not name its holder
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.fsync(descriptor)  # for readers on other hosts


def holder_of(path: Path) -> str:
    """Describes the process that holds a lock: "process 17 on host a, since ..."."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def _is_at(descriptor: int, path: Path) -> bool:
    # The previous holder may have removed the file; a lock on a removed file excludes nobody.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
