"""Folders of a store under construction: one process at a time builds it, and a later start resumes it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.store.writer import COMPLETE_FILE, META_FILE
from framework.errors import DataError
from framework.files import holder_of, locked, read_json_object, write_atomic

SETTINGS_FILE = "settings.json"


def find_store(folder: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Returns the content of store.json if the store exists and was made from the same files and settings.

    Returns:
        The content; None if the store is to be built, because it does not exist or `overwrite` allows replacing it.

    Raises:
        DataError: The folder holds something else, or the store is damaged.
    """
    if not folder.exists():
        return None
    if not (folder / COMPLETE_FILE).is_file():
        raise DataError(
            f"{folder} exists, but is not a complete token store. Preparation does not replace other folders. Choose "
            "another folder, or delete it."
        )
    meta = read_meta(folder)
    if meta.get("settings") == settings:
        return meta
    if overwrite:
        return None
    raise DataError(
        f"{folder} holds a store made from other files or settings. It is only replaced with overwrite=true. Choose "
        "another folder, or set overwrite=true."
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns the content of store.json.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        return read_json_object(folder / META_FILE)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / META_FILE} cannot be read ({error}). A store needs this file. Restore it, or delete the store."
        ) from error


@contextmanager
def exclusive_access(folder: Path) -> Iterator[None]:
    """Returns a context that holds the lock of a folder, so that no other process prepares the same store.

    Raises:
        DataError: Another process holds the lock, or the file system has no locks.
    """
    path = folder.with_name(folder.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            held = stack.enter_context(locked(path, wait=False))
        except OSError as error:
            raise DataError(
                f"{path} cannot be locked ({error.strerror}). Without a lock, two processes could write the same "
                "store. Choose a folder on a file system with locks, and copy the store afterwards."
            ) from error
        if not held:
            raise DataError(
                f"another framework.prepare is writing {folder} ({holder_of(path)}). Only one process can write a "
                "store. Wait until it ends, or choose another folder."
            )
        yield


@dataclass(frozen=True)
class PartialFolder:
    """Folder `<folder>.partial`, in which a store is built; it also holds the results of each pass.

    Attributes:
        folder: Final folder of the store.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """Returns the path `<folder>.partial`."""
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def store(self) -> Path:
        """Returns the folder of the incomplete store."""
        return self.path / "store"

    @property
    def _replaced(self) -> Path:
        return self.folder.with_name(self.folder.name + ".replaced")

    def has(self, settings: dict[str, Any]) -> bool:
        """Returns True if the folder holds the results of an earlier start with the same settings."""
        file = self.path / SETTINGS_FILE
        return file.is_file() and file.read_text(encoding="utf-8", errors="replace") == _as_text(settings)

    def open(self, settings: dict[str, Any]) -> None:
        """Keeps the results of an earlier start with the same settings; otherwise makes an empty folder."""
        if self.has(settings):
            return
        self.remove()
        self.store.mkdir(parents=True)
        write_atomic(self.path / SETTINGS_FILE, _as_text(settings))

    def publish(self) -> None:
        """Renames the finished store to its final folder, and replaces an earlier store there."""
        if self.folder.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.folder.rename(self._replaced)
        self.store.rename(self.folder)
        self.clean_up()

    def clean_up(self) -> None:
        """Removes the partial folder and the replaced store after the store got its final name."""
        self.remove()
        shutil.rmtree(self._replaced, ignore_errors=True)

    def remove(self) -> None:
        """Removes the partial folder and its content."""
        shutil.rmtree(self.path, ignore_errors=True)


def _as_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
