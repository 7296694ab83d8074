"""Reads byte ranges of files on any file system of fsspec (local, http, s3, memory, ...), with retries.

Each range is one request. Nothing is prefetched or cached. `framework.data.reading.shards` interprets the bytes.
"""

import io
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from framework.data.reading.files import check_regular, find_files
from framework.errors import ConfigError, DataError

PIECE_BYTES = 8 * 2**20
"""Most bytes of one request, so that a lost connection costs little and a large range does not exceed the timeout."""

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_RETRIED_STATUSES = (408, 425, 429)

# Each protocol raises the errors of its own library. A class that was not imported cannot have been raised.
_FOREIGN_ERRORS = {
    "aiohttp": "ClientError",
    "httpx": "HTTPError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "azure.core.exceptions": "AzureError",
    "urllib3.exceptions": "HTTPError",
}

# A forked process drops fsspec's instances. The destruction of one unregisters its sockets from an event loop that the
# parent still uses, and the parent's next request hangs (fsspec 2026.9, aiohttp 3.14). Therefore they are kept alive.
_KEPT: dict[int, AsyncFileSystem] = {}

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def safe_name(name: str) -> str:
    """Returns a file's name for messages and identities: a URL without its query and user, which may hold secrets."""
    protocol, mark, rest = name.partition("://")
    if not mark:
        return name
    host, slash, path = rest.partition("?")[0].partition("/")
    return protocol + mark + host.rpartition("@")[2] + slash + path


@dataclass(frozen=True)
class RemoteFiles:
    """Access to files by path or URL. Threads and forked processes may share an object.

    Attributes:
        retries: Number of retries of a failed request.
        timeout_seconds: Timeout of one request of at most `PIECE_BYTES`; it applies to asynchronous file systems of
            fsspec (http, s3, gs, az).
        storage_options: Options for fsspec's file system.
    """

    retries: int
    timeout_seconds: float
    storage_options: Mapping[str, Any] = field(repr=False)

    def find(self, entries: str | Sequence[str]) -> list[str]:
        """Expands paths, URLs, globs, and `@FILE`, a text file with one of these per line. No file is returned twice.

        Raises:
            DataError: An entry matches no file or cannot be listed.
        """
        names: dict[str, None] = {}
        for entry in [entries] if isinstance(entries, str) else entries:
            for pattern in _listed(entry[1:]) if entry.startswith("@") else [entry]:
                names.update(dict.fromkeys(self._expand(pattern)))
        if not names:
            raise DataError(f"`files` is {entries!r}, which names no file. Give paths, URLs or globs.")
        return list(names)

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes.

        Raises:
            DataError: The file cannot be reached, or the server does not report its size.
        """
        files, path = self._open(name)
        info: dict[str, Any] = self._retry(name, "requesting the size", lambda: self._call(files, "info", path))
        if info.get("size") is None:
            raise DataError(
                f"{safe_name(name)}: the server does not report the size. It must send Content-Length. Use another "
                "server, or fetch the shards first."
            )
        return int(info["size"])

    def read(self, name: str, start: int, end: int) -> bytes:
        """Reads the bytes from `start` to `end` (exclusive).

        Raises:
            DataError: A request fails despite all retries.
        """
        pieces = []
        for first in range(start, end, PIECE_BYTES):
            last = min(first + PIECE_BYTES, end)
            doing = f"reading bytes {first} to {last}"
            pieces.append(self._retry(name, doing, lambda first=first, last=last: self._piece(name, first, last)))  # type: ignore[misc]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, name: str, start: int, end: int) -> bytes:
        files, path = self._open(name)
        content: bytes = self._call(files, "cat_file", path, start, end)
        if len(content) > end - start:
            raise DataError(
                f"{safe_name(name)}: {end - start} bytes were requested and {len(content)} arrived. The server ignores "
                "byte ranges. Use a server that supports the header Range, or fetch the shards first."
            )
        if len(content) < end - start:
            raise ConnectionError(f"only {len(content)} of {end - start} bytes arrived")
        return content

    def _call(self, files: fsspec.AbstractFileSystem, method: str, path: str, *offsets: int) -> Any:
        if isinstance(files, AsyncFileSystem):
            return sync(files.loop, getattr(files, f"_{method}"), path, *offsets, timeout=self.timeout_seconds)
        return getattr(files, method)(path, *offsets)

    def _open(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """Returns the file system, which fsspec caches per process and options, and its path of the file."""
        options = dict(self.storage_options)
        if name.startswith(("http://", "https://")):
            # A range of a compressed response would contain other bytes.
            client = dict(options.get("client_kwargs", {}))
            client["headers"] = {**client.get("headers", {}), "Accept-Encoding": "identity"}
            options["client_kwargs"] = client
        try:
            files, path = fsspec.core.url_to_fs(name, **options)
        except ImportError as error:
            raise ConfigError(f"{safe_name(name)} needs a package that is missing ({error}). Install it.") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{safe_name(name)} cannot be opened ({error}). Correct the URL or `storage_options`."
            ) from error
        if isinstance(files, AsyncFileSystem):
            _KEPT[id(files)] = files
        return files, path

    def _expand(self, pattern: str) -> list[str]:
        if "://" not in pattern:
            return [str(path) for path in find_files(pattern)]
        over_http = pattern.startswith(("http://", "https://"))
        if not any(sign in pattern for sign in ("*" if over_http else "*?[")):
            return [pattern]
        if over_http:
            raise DataError(
                f"{safe_name(pattern)} is a glob. A web server does not list its files. List the URLs, or name a text "
                "file with one URL per line: files=@shards.txt."
            )
        files, path = self._open(pattern)
        matches: dict[str, dict[str, Any]] = self._retry(pattern, "listing", lambda: files.glob(path, detail=True))
        names = sorted(files.unstrip_protocol(match) for match, info in matches.items() if info["type"] == "file")
        if not names:
            raise DataError(f"no file matches {safe_name(pattern)!r}. Give a path or glob of existing files.")
        return names

    def _retry(self, name: str, doing: str, action: Callable[[], Result]) -> Result:
        """Runs an action, and retries it after errors that may be temporary. All retries happen here."""
        attempt = 0
        while True:
            try:
                return action()
            except _errors() as error:
                cause = _cause(error)
                reason = self._described(name, cause)
                if _is_final(cause):
                    raise DataError(
                        f"{safe_name(name)} cannot be read ({reason}). Correct the path or URL, its access rights, or "
                        "`storage_options`."
                    ) from error
                if attempt == self.retries:
                    raise DataError(
                        f"{safe_name(name)}: {doing} failed {attempt + 1} times. The last reason: {reason}. Start "
                        "again when the connection is better, or raise `retries` or `timeout_seconds`."
                    ) from error
                seconds = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
                logger.warning("%s: %s failed (%s). Retrying in %g s.", safe_name(name), doing, reason, seconds)
                sleep(seconds)
                attempt += 1

    def _described(self, name: str, error: BaseException) -> str:
        status = _status(error)
        if status is not None:
            return f"the server answered {status}"
        if isinstance(error, TimeoutError):
            return f"no complete response within {self.timeout_seconds:g} s"
        return f"{type(error).__name__}: {' '.join(str(error).split()).replace(name, safe_name(name))}"


class RangeFile(io.RawIOBase):
    """File object for pyarrow that reads one byte range per call.

    Args:
        files: Access to the file.
        name: Path or URL of the file.
        size: Size of the file in bytes.
    """

    def __init__(self, files: RemoteFiles, name: str, size: int) -> None:
        super().__init__()
        self._files, self._name, self._size = files, name, size
        self._position = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the offset of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the offset of the next read; sends no request."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Reads the next bytes; returns fewer than requested only at the end of the file.

        Raises:
            DataError: See `RemoteFiles.read`.
        """
        end = self._size if size < 0 else min(self._position + size, self._size)
        content = self._files.read(self._name, self._position, end)
        self._position += len(content)
        return content


def _listed(file: str) -> list[str]:
    check_regular(Path(file))
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}, the list of shards, cannot be read ({error}). Give a text file in UTF-8.") from error
    return [line.strip() for line in lines if line.strip()]


def _errors() -> tuple[type[BaseException], ...]:
    """Returns the errors that a request can raise. ValueError and TypeError indicate wrong names and options."""
    foreign = [
        getattr(sys.modules[module], name, None) for module, name in _FOREIGN_ERRORS.items() if module in sys.modules
    ]
    return (OSError, ValueError, TypeError, *(kind for kind in foreign if kind is not None))


def _cause(error: BaseException) -> BaseException:
    """Returns the real error behind FileNotFoundError, which fsspec raises if a request for a size over http fails."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status of an error; the libraries name this attribute differently."""
    for owner in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return None


def _is_final(error: BaseException) -> bool:
    """Returns True if a retry cannot help."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _RETRIED_STATUSES
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
    return isinstance(error, kinds)
