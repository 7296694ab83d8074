"""Byte ranges of files anywhere that fsspec reaches (local, http, s3, memory, ...), asked for again when they fail.

Each range is one request; nothing is read ahead and nothing is kept. What the bytes mean is the work of
`framework.data.reading.shards`.
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
"""Most bytes of one request, so that a lost connection costs little and a large range does not run into the timeout."""

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_TRY_AGAIN_STATUSES = (408, 425, 429)

# Each protocol raises the errors of its own library; a class that was not imported cannot have been raised.
_FOREIGN_ERRORS = {
    "aiohttp": "ClientError",
    "httpx": "HTTPError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "azure.core.exceptions": "AzureError",
    "urllib3.exceptions": "HTTPError",
}

# A forked process drops fsspec's instances, and the end of one unregisters its sockets from an event loop that the
# parent still uses: the parent's next request then hangs (fsspec 2026.9, aiohttp 3.14). So they are kept alive.
_KEPT: dict[int, AsyncFileSystem] = {}

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def shown(name: str) -> str:
    """A file's name for messages and identities: a URL without its query and user, which may hold secrets."""
    protocol, mark, rest = name.partition("://")
    if not mark:
        return name
    host, slash, path = rest.partition("?")[0].partition("/")
    return protocol + mark + host.rpartition("@")[2] + slash + path


@dataclass(frozen=True)
class RemoteFiles:
    """Files that are named by paths or URLs. Threads and forked processes may use the same object.

    Attributes:
        retries: How often a request that failed is made again.
        timeout_seconds: For one request of at most `PIECE_BYTES`; held where fsspec is asynchronous (http, s3, gs, az).
        storage_options: What fsspec's file system is made with.
    """

    retries: int
    timeout_seconds: float
    storage_options: Mapping[str, Any] = field(repr=False)

    def find(self, entries: str | Sequence[str]) -> list[str]:
        """Expands paths, URLs, globs, and `@FILE`, a text file with one of these a line; no file twice.

        Raises:
            DataError: An entry matches no file or cannot be listed.
        """
        found: dict[str, None] = {}
        for entry in [entries] if isinstance(entries, str) else entries:
            for pattern in _listed(entry[1:]) if entry.startswith("@") else [entry]:
                found.update(dict.fromkeys(self._expand(pattern)))
        if not found:
            raise DataError(f"`files` is {entries!r}, which names no file; give paths, URLs or globs.")
        return list(found)

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            DataError: The file cannot be reached, or its size is not told.
        """
        files, path = self._open(name)
        info: dict[str, Any] = self._try(name, "asking for the size", lambda: self._call(files, "info", path))
        if info.get("size") is None:
            raise DataError(f"{shown(name)}: the server does not tell its size; it must send Content-Length.")
        return int(info["size"])

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to, not with, `end`.

        Raises:
            DataError: They cannot be had, also not by trying again.
        """
        pieces = []
        for first in range(start, end, PIECE_BYTES):
            last = min(first + PIECE_BYTES, end)
            place = f"reading bytes {first} to {last}"
            pieces.append(self._try(name, place, lambda first=first, last=last: self._piece(name, first, last)))  # type: ignore[misc]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, name: str, start: int, end: int) -> bytes:
        files, path = self._open(name)
        content: bytes = self._call(files, "cat_file", path, start, end)
        if len(content) > end - start:
            raise DataError(
                f"{shown(name)}: {end - start} bytes were asked for and {len(content)} came, so the server ignores "
                "byte ranges; use a server that knows the header Range, or fetch the shards first."
            )
        if len(content) < end - start:
            raise ConnectionError(f"{len(content)} of {end - start} bytes came")
        return content

    def _call(self, files: fsspec.AbstractFileSystem, method: str, path: str, *places: int) -> Any:
        if isinstance(files, AsyncFileSystem):
            return sync(files.loop, getattr(files, f"_{method}"), path, *places, timeout=self.timeout_seconds)
        return getattr(files, method)(path, *places)

    def _open(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system and its own name of the file; fsspec makes one per process and options, and keeps it."""
        options = dict(self.storage_options)
        if name.startswith(("http://", "https://")):
            # A range of a compressed answer would be a range of other bytes.
            client = dict(options.get("client_kwargs", {}))
            client["headers"] = {**client.get("headers", {}), "Accept-Encoding": "identity"}
            options["client_kwargs"] = client
        try:
            files, path = fsspec.core.url_to_fs(name, **options)
        except ImportError as error:
            raise ConfigError(f"{shown(name)} needs a package that is missing ({error}); install it.") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{shown(name)} cannot be opened ({error}); correct the URL or `storage_options`."
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
                f"{shown(pattern)} is a glob, and a web server does not list its files; list the URLs, or name a text "
                "file that has one a line: files=@shards.txt."
            )
        files, path = self._open(pattern)
        matches: dict[str, dict[str, Any]] = self._try(pattern, "listing", lambda: files.glob(path, detail=True))
        names = sorted(files.unstrip_protocol(match) for match, info in matches.items() if info["type"] == "file")
        if not names:
            raise DataError(f"no file matches {shown(pattern)!r}; give a path or glob of existing files.")
        return names

    def _try(self, name: str, doing: str, action: Callable[[], Result]) -> Result:
        """The one place where something is tried again."""
        attempt = 0
        while True:
            try:
                return action()
            except _errors() as error:
                cause = _cause(error)
                what = self._described(name, cause)
                if _is_final(cause):
                    raise DataError(
                        f"{shown(name)} cannot be read ({what}); correct the path or URL, its access rights, or "
                        "`storage_options`."
                    ) from error
                if attempt == self.retries:
                    raise DataError(
                        f"{shown(name)}: {doing} failed {attempt + 1} times, at last because of: {what}; start again "
                        "when the connection is better, or raise `retries` or `timeout_seconds`."
                    ) from error
                seconds = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
                logger.warning("%s: %s failed (%s); trying again in %g s", shown(name), doing, what, seconds)
                sleep(seconds)
                attempt += 1

    def _described(self, name: str, error: BaseException) -> str:
        status = _status(error)
        if status is not None:
            return f"the server answered {status}"
        if isinstance(error, TimeoutError):
            return f"no whole answer within {self.timeout_seconds:g} s"
        return f"{type(error).__name__}: {' '.join(str(error).split()).replace(name, shown(name))}"


class RangeFile(io.RawIOBase):
    """A file for pyarrow whose every read is one range.

    Args:
        files: Where it is.
        name: Of the file.
        size: In bytes.
    """

    def __init__(self, files: RemoteFiles, name: str, size: int) -> None:
        super().__init__()
        self._files, self._name, self._size = files, name, size
        self._place = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place from which the next bytes are read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place; asks for nothing."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, fewer at the end of the file only.

        Raises:
            DataError: See `RemoteFiles.read`.
        """
        end = self._size if size < 0 else min(self._place + size, self._size)
        content = self._files.read(self._name, self._place, end)
        self._place += len(content)
        return content


def _listed(file: str) -> list[str]:
    check_regular(Path(file))
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}, the list of shards, cannot be read ({error}); give a text file in UTF-8.") from error
    return [line.strip() for line in lines if line.strip()]


def _errors() -> tuple[type[BaseException], ...]:
    """What a request can raise; ValueError and TypeError tell of wrong names and options."""
    found = [
        getattr(sys.modules[module], name, None) for module, name in _FOREIGN_ERRORS.items() if module in sys.modules
    ]
    return (OSError, ValueError, TypeError, *(kind for kind in found if kind is not None))


def _cause(error: BaseException) -> BaseException:
    """Fsspec says FileNotFoundError for whatever went wrong when it asked for a file's size over http."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _status(error: BaseException) -> int | None:
    """Of the HTTP answer that the error tells of; the libraries name it differently."""
    for place in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            value = getattr(place, name, None)
            if isinstance(value, int):
                return value
    return None


def _is_final(error: BaseException) -> bool:
    """True where trying again cannot help."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _TRY_AGAIN_STATUSES
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
    return isinstance(error, kinds)
