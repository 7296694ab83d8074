"""What makes a checkpoint whole: COMPLETE records size and checksum of each file, and loading compares them.

Checksums are taken from the bytes on their way to the file, each rank's of its own shards, so that they cost no second
reading and also cover what the file system made of the bytes. BLAKE2b (RFC 7693) with 16 bytes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

from torch.distributed.checkpoint.filesystem import FileSystem
from typing_extensions import override

from framework.checkpoint.layout import COMPLETE, DamagedError, read_json, write_json

Verify = Literal["sizes", "checksums"]
"""What is compared on loading: the size of each file and the checksums of all but the shards, or all checksums too."""

SHARD_SUFFIX = ".distcp"

_SIZES, _CHECKSUMS = "file_sizes_bytes", "blake2b"
_DIGEST_BYTES = 16


def checksum(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()


def mark_complete(folder: Path, checksums: Mapping[str, str] | None = None) -> None:
    """Writes COMPLETE with size and checksum of each file.

    Args:
        folder: A checkpoint, written to its end.
        checksums: By file name, those that are known; other files are read.
    """
    known = checksums or {}
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    record = {
        _SIZES: {name: path.stat().st_size for name, path in paths.items()},
        _CHECKSUMS: {name: known.get(name) or checksum(path) for name, path in paths.items()},
    }
    write_json(folder / COMPLETE, record)


def verify(folder: Path, how: Verify = "sizes", rank: int = 0, num_ranks: int = 1) -> None:
    """Checks that a checkpoint is whole: COMPLETE is there and each file is as it was written.

    A checkpoint of an older version has no checksums: its sizes are compared.

    Args:
        folder: A checkpoint.
        how: What is compared.
        rank: Which share of the files is checked here.
        num_ranks: Shares in all.

    Raises:
        DamagedError: It is not whole; the reason names the file.
    """
    marker = folder / COMPLETE
    if not marker.is_file():
        raise DamagedError(f"{folder} has no file {COMPLETE}, so it was not written to its end")
    record = read_json(marker)
    sizes, checksums = record.get(_SIZES), record.get(_CHECKSUMS, {})
    if not isinstance(sizes, dict) or not sizes or not isinstance(checksums, dict):
        raise DamagedError(f"{marker} does not list the checkpoint's files")
    if checksums and checksums.keys() != sizes.keys():
        raise DamagedError(f"{marker} lists other files with sizes than with checksums")
    for name in sorted(sizes)[rank::num_ranks]:
        with_checksum = how == "checksums" or not name.endswith(SHARD_SUFFIX)
        _verify_file(folder / name, sizes[name], checksums.get(name) if with_checksum else None)


def _verify_file(path: Path, size: int, expected: str | None) -> None:
    try:
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise DamagedError(f"{path} {what}, but {size} bytes were written")
        if expected is not None and checksum(path) != expected:
            raise DamagedError(f"{path} holds other bytes than were written (its checksum differs)")
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error


class HashingFileSystem(FileSystem):
    """Torch's local file system that keeps the checksum of each file written through it.

    Attributes:
        checksums: By file name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checksums: dict[str, str] = {}

    @contextmanager
    @override
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Opens a file; an error of the disk leaves as itself, not as what torch's zip writer makes of it later."""
        with super().create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            hashed = _HashedStream(cast(IO[bytes], stream))
            try:
                yield hashed
            except RuntimeError as error:
                if hashed.error is None:
                    raise
                raise hashed.error from error
        self.checksums[Path(path).name] = hashed.hash.hexdigest()

    @override
    def rename(self, path: Any, new_path: Any) -> None:
        """Renames a file, and its checksum."""
        super().rename(path, new_path)
        if Path(path).name in self.checksums:
            self.checksums[Path(new_path).name] = self.checksums.pop(Path(path).name)


class _HashedStream:
    """Hashes what is written to a file. It cannot seek: what was hashed is then what the file holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return written

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        self._stream.close()
