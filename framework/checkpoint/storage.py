"""Where checkpoints are kept: in a local or shared folder, which is a `pathlib.Path`, or behind an fsspec URL.

On disk a file is flushed, and a rename puts what is whole in its place. Behind a URL nothing can be renamed and nothing
has to be flushed: files are written where they belong, and what is whole is said by COMPLETE alone.
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
from framework.files import write_whole as write_local

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*[^/])/*", re.DOTALL)


@dataclass(frozen=True)
class RemotePath:
    """A folder or file behind an fsspec URL, with the methods of `pathlib.Path` that checkpoints need.

    Attributes:
        url: Without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return RemotePath(self.url.rpartition("/")[0])

    def resolve(self) -> "RemotePath":
        """Itself: there is one URL to a place."""
        return self

    def info(self) -> dict[str, Any] | None:
        """`type` and `size`; None where nothing is there. fsspec's own `exists` takes any error for that answer."""
        files, path = self._opened()
        try:
            return files.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self) -> bool:
        """True for a file or a folder."""
        return self.info() is not None

    def is_file(self) -> bool:
        """True for a file."""
        return (self.info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """True for a folder; an object store has those that hold something."""
        return (self.info() or {}).get("type") == "directory"

    def iterdir(self) -> Iterator["RemotePath"]:
        """What a folder holds, in no order."""
        files, path = self._opened()
        for entry in files.ls(path, detail=False):
            if entry.strip("/") != path.strip("/"):  # an object store may list a marker of the folder itself
                yield self / entry.rstrip("/").rpartition("/")[2]

    def open(self, mode: str) -> Any:
        """Opens a file for bytes; one that is written is there when it is closed."""
        files, path = self._opened()
        return files.open(path, mode)

    def read_text(self, encoding: str) -> str:
        """The text of a file."""
        with self.open("rb") as file:
            return file.read().decode(encoding)

    def write_text(self, text: str, encoding: str) -> int:
        """Writes a file."""
        with self.open("wb") as file:
            return file.write(text.encode(encoding))

    def mkdir(self, *, parents: bool, exist_ok: bool = True) -> None:  # noqa: ARG002  always so behind a URL
        """Makes a folder where there are such things; in an object store a folder is the names of its files."""
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
        """Deletes a folder and what it holds, in no order."""
        files, path = self._opened()
        files.rm(path, recursive=True)

    def _opened(self) -> tuple[Any, str]:
        """The file system (fsspec keeps it) and the path there; what other processes have written since shows."""
        files, path = url_to_fs(self.url)
        files.invalidate_cache()
        return files, path


Location = Path | RemotePath
"""A folder or file of checkpoints."""


def location(text: str) -> Location:
    """What a path or a URL names; `file://` is local.

    Raises:
        ConfigError: The URL cannot be used here, or it holds a secret.
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
            f"{shown} needs a package that is not installed ({error}); install it, or choose a local folder."
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{shown} cannot be used for checkpoints ({error}); choose a local folder, or a URL that fsspec can open, "
            "such as s3://bucket/folder."
        ) from error
    if secret:
        raise ConfigError(
            f"{shown} was given with a password or a query (?...), but configs are saved and a URL may hold no secret; "
            "leave it out, and give it by the environment variables or files of the storage's own tools."
        )
    if type(files) is LocalFileSystem:
        return Path(path)
    return RemotePath(f"{match[1]}://{match[2]}")


def has_rename(path: Location) -> bool:
    """True where a folder can be written beside and put in its place when it is whole."""
    return isinstance(path, Path)


def size_of(path: Location) -> int | None:
    """Bytes of a file; None where there is no such file."""
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    info = path.info()
    return info["size"] if info is not None and info["type"] == "file" else None


def write_whole(path: Location, text: str) -> None:
    """Writes a file completely or not at all; behind a URL a failed write is deleted."""
    if isinstance(path, RemotePath):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return
    write_local(path, text)


def put_in_place(written: Location, target: Location) -> None:
    """Gives a folder that was written beside its own name; one that was written where it belongs is left there."""
    if isinstance(written, Path) and isinstance(target, Path):
        sync_folder(written)
        written.rename(target)
        sync_folder(target.parent)


def move(path: Location, name: str) -> None:
    """Gives a file another name in its folder; behind a URL by writing it again."""
    if isinstance(path, Path):
        path.rename(path.with_name(name))
        return
    with path.open("rb") as old, (path.parent / name).open("wb") as new:
        shutil.copyfileobj(old, new)
    path.unlink()


def sync_folder(folder: Location) -> None:
    """Makes renames inside a folder survive a power cut."""
    if isinstance(folder, Path):
        sync_local_folder(folder)


def remove_tree(folder: Location, ignore_errors: bool = False) -> None:
    """Deletes a folder and what it holds; what cannot be deleted is an error, or left."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors)
        return
    with contextlib.suppress(OSError) if ignore_errors else contextlib.nullcontext():
        folder.rmtree()
