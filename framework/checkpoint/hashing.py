"""File system for torch's checkpoint reader and writer that computes the checksum of each file as it is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from torch.distributed.checkpoint.filesystem import FileSystemBase
from typing_extensions import override

from framework.checkpoint.storage import move
from framework.files import new_digest


class HashingFileSystem(FileSystemBase):
    """File system that torch's checkpoint reader and writer use. It keeps the checksum of each file that is written.

    Attributes:
        checksums: Checksums by file name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checksums: dict[str, str] = {}

    @contextmanager
    @override
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Opens a file. If a write fails, raises its OSError instead of the RuntimeError of torch's zip writer."""
        with path.open(mode) as stream:
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
        self.checksums[path.name] = hashed.hash.hexdigest()

    @override
    def rename(self, path: Any, new_path: Any) -> None:
        """Renames a file within its folder, and moves its checksum to the new name."""
        move(path, new_path.name)
        self.checksums[new_path.name] = self.checksums.pop(path.name)

    @override
    def concat_path(self, path: Any, suffix: str) -> Any:
        """Returns the path of a file in a folder."""
        return path / suffix

    @override
    def init_path(self, path: Any) -> Any:
        """Returns the folder unchanged, because it is already a `Location`."""
        return path

    @override
    def mkdir(self, path: Any) -> None:
        """Creates a folder and its parents, if they are missing."""
        path.mkdir(parents=True, exist_ok=True)

    @override
    def exists(self, path: Any) -> bool:
        """Returns True if the file or folder exists."""
        return path.exists()

    @override
    def rm_file(self, path: Any) -> None:
        """Deletes a file."""
        path.unlink()

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Returns True, because `location` has already checked the folder."""
        return True


class _HashedStream:
    """Writable stream that hashes its bytes. It has no `seek`, so that the hash matches the content of the file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = new_digest()
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
