"""Integrity checks: COMPLETE records the size and checksum of each file, and loading compares them.

Each rank computes the checksums of its own shards from the bytes that it writes. This saves a second read, and it also
detects errors of the file system.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from framework.checkpoint.layout import COMPLETE, DamagedError, read_json, write_json
from framework.checkpoint.storage import Location, size_of
from framework.files import checksum

Verify = Literal["sizes", "checksums"]
"""Depth of a check: all file sizes, and the checksums of all files ("checksums") or all but the shards ("sizes")."""

SHARD_SUFFIX = ".distcp"

_SIZES, _CHECKSUMS = "file_sizes_bytes", "blake2b"
_SHARD = re.compile(r"__(\d+)_\d+" + re.escape(SHARD_SUFFIX))
_FILES_AT_ONCE = 4
"""Number of files hashed in parallel: hashing releases the GIL, and remote reads overlap."""


def mark_complete(folder: Location, checksums: Mapping[str, str] | None = None) -> None:
    """Writes COMPLETE with the size and checksum of each file.

    Args:
        folder: Folder of a checkpoint whose other files are all written.
        checksums: Known checksums by file name. Files without one are read.
    """
    known = checksums or {}
    names = sorted(path.name for path in folder.iterdir())
    sizes = {name: size_of(folder / name) for name in names}
    record = {
        _SIZES: sizes,
        _CHECKSUMS: {name: known.get(name) or checksum(folder / name) for name in sizes},
    }
    write_json(folder / COMPLETE, record)


def verify(folder: Location, how: Verify = "checksums", rank: int = 0, num_ranks: int = 1) -> None:
    """Checks that a checkpoint is intact: COMPLETE exists, and each file is as it was written.

    Checkpoints of older versions have no checksums. Only their sizes are compared.

    Args:
        folder: Folder of a checkpoint.
        how: Depth of the check.
        rank: Rank whose share of the files is checked. At the world size of the save, these are the shards that the
            rank loads, so that each shard is read from disk once.
        num_ranks: Number of shares.

    Raises:
        DamagedError: The checkpoint is not intact; the reason names the file.
    """
    marker = folder / COMPLETE
    if not marker.is_file():
        raise DamagedError(f"{folder} has no file {COMPLETE}, so its save did not finish")
    record = read_json(marker)
    sizes, checksums = record.get(_SIZES), record.get(_CHECKSUMS, {})
    if not isinstance(sizes, dict) or not sizes or not isinstance(checksums, dict):
        raise DamagedError(f"{marker} does not list the checkpoint's files")
    if checksums and checksums.keys() != sizes.keys():
        raise DamagedError(f"{marker} does not list the same files with sizes and with checksums")

    def check(name: str) -> None:
        with_checksum = how == "checksums" or not name.endswith(SHARD_SUFFIX)
        _verify_file(folder / name, sizes[name], checksums.get(name) if with_checksum else None)

    own = [name for name in sorted(sizes) if _writer_of(name) % num_ranks == rank]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        list(pool.map(check, own))


def _writer_of(name: str) -> int:
    """Returns the rank that wrote a shard; 0 for the other files."""
    match = _SHARD.fullmatch(name)
    return int(match.group(1)) if match else 0


def _verify_file(path: Location, size: int, expected: str | None) -> None:
    try:
        actual = size_of(path)
        if actual != size:
            problem = "is missing" if actual is None else f"has {actual} bytes"
            raise DamagedError(f"{path} {problem}, but {size} bytes were written")
        if expected is not None and checksum(path) != expected:
            raise DamagedError(f"{path} has changed since it was written (its checksum differs)")
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
