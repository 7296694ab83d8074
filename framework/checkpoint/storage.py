"""Storage of checkpoints: a local or shared folder (`pathlib.Path`), or an fsspec URL (`RemotePath`).

On disk, files are flushed, and finished folders are renamed to their final name. Storage behind a URL has neither
rename nor flush: files are written to their final path, and only COMPLETE marks a finished checkpoint.
`RemotePath` is our own class, because `exists` of universal-pathlib returns False on any error, as in fsspec itself.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from framework.errors import ConfigError
from framework.files import sync_folder as sync_local_folder
from framework.files import write_atomic as write_atomic_local

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*[^/])/*", re.DOTALL)


@dataclass(frozen=True)
class RemotePath:
    """A folder or file behind an fsspec URL, with the methods of `pathlib.Path` that checkpoints need.

    Attributes:
        url: URL without a trailing slash.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """Returns the part after the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """Returns the parent folder."""
        return RemotePath(self.url.rpartition("/")[0])

    def resolve(self) -> "RemotePath":
        """Returns itself, because a URL has no links to resolve."""
        return self

    def info(self) -> dict[str, Any] | None:
        """Returns `type` and `size`; None if it does not exist. fsspec's own `exists` returns False on any error."""
        files, path = self._opened()
        try:
            return files.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self) -> bool:
        """Returns True if a file or folder exists."""
        return self.info() is not None

    def is_file(self) -> bool:
        """Returns True for a file."""
        return (self.info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Returns True for a folder. An object store has no empty folders."""
        return (self.info() or {}).get("type") == "directory"

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields the entries of a folder, in no order."""
        files, path = self._opened()
        for entry in files.ls(path, detail=False):
            if entry.strip("/") != path.strip("/"):  # an object store may list a marker of the folder itself
                yield self / entry.rstrip("/").rpartition("/")[2]

    def open(self, mode: str) -> Any:
        """Opens a binary file. A written file exists once it is closed."""
        files, path = self._opened()
        return files.open(path, mode)

    def read_text(self, encoding: str) -> str:
        """Reads a text file."""
        with self.open("rb") as file:
            return file.read().decode(encoding)

    def write_text(self, text: str, encoding: str) -> int:
        """Writes a text file."""
        with self.open("wb") as file:
            return file.write(text.encode(encoding))

    def mkdir(self, *, parents: bool, exist_ok: bool = True) -> None:  # noqa: ARG002  both always hold behind a URL
        """Creates a folder. In an object store, folders exist only in the names of files."""
        files, path = self._opened()
        files.makedirs(path, exist_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes a file."""
        files, path = self._opened()
        try:
            files.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Deletes a folder and its content, in no order."""
        files, path = self._opened()
        files.rm(path, recursive=True)

    def _opened(self) -> tuple[Any, str]:
        """Returns the file system (cached by fsspec) and the path in it, after dropping outdated listings."""
        files, path = url_to_fs(self.url)
        files.invalidate_cache()
        return files, path


Location = Path | RemotePath
"""A folder or file of checkpoints."""


def location(text: str) -> Location:
    """Returns the location that a path or URL names; `file://` URLs become local paths.

    Raises:
        ConfigError: The URL cannot be used, or it contains a secret.
    """
    if "://" not in text:
        return Path(text)
    shown = re.sub(r"//[^/]*@", "//***@", text.partition("?")[0])
    match = _URL.fullmatch(text)
    try:
        if match is None:
            raise ValueError("it is not PROTOCOL://FOLDER")
        secret = "?" in text or urlsplit(text).password is not None
        if not secret:
            files, path = url_to_fs(text)
    except ImportError as error:
        raise ConfigError(
            f"{shown} needs a package that is not installed ({error}). Install it, or choose a local folder."
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{shown} cannot be used for checkpoints ({error}). Choose a local folder, or a URL that fsspec can open, "
            "such as s3://bucket/folder."
        ) from error
    if secret:
        raise ConfigError(
            f"{shown} was given with a password or a query (?...). Configs are saved, so a URL must not hold a secret. "
            "Remove it, and use the environment variables or files of the storage's own tools."
        )
    if type(files) is LocalFileSystem:
        return Path(path)
    return RemotePath(f"{match[1]}://{match[2]}")


def has_rename(path: Location) -> bool:
    """Returns True if the storage can rename folders, so that a finished folder can replace a temporary one."""
    return isinstance(path, Path)


def size_of(path: Location) -> int | None:
    """Returns the size of a file in bytes; None if it does not exist."""
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    info = path.info()
    return info["size"] if info is not None and info["type"] == "file" else None


def write_atomic(path: Location, text: str) -> None:
    """Writes a text file completely or not at all. Behind a URL, the file of a failed write is deleted."""
    if isinstance(path, RemotePath):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return
    write_atomic_local(path, text)


def rename_to_final(written: Location, target: Location) -> None:
    """Renames a temporary folder to its final name. Behind a URL it already has that name."""
    if isinstance(written, Path) and isinstance(target, Path):
        sync_folder(written)
        written.rename(target)
        sync_folder(target.parent)


def move(path: Location, name: str) -> None:
    """Renames a file within its folder. Behind a URL the file is copied, and the old one deleted."""
    if isinstance(path, Path):
        path.rename(path.with_name(name))
        return
    with path.open("rb") as old, (path.parent / name).open("wb") as new:
        shutil.copyfileobj(old, new)
    path.unlink()


def sync_folder(folder: Location) -> None:
    """Flushes a folder to disk, so that renames in it survive a power failure. Does nothing behind a URL."""
    if isinstance(folder, Path):
        sync_local_folder(folder)


def remove_tree(folder: Location, ignore_errors: bool = False) -> None:
    """Deletes a folder and its content. With `ignore_errors`, entries that cannot be deleted are left."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors)
        return
    with contextlib.suppress(OSError) if ignore_errors else contextlib.nullcontext():
        folder.rmtree()
