"""Where a store is made: one prepare at a time, in a folder that a later start goes on with."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.store.writer import COMPLETE_FILE, META_FILE
from framework.errors import DataError
from framework.files import holder_of, locked, parse_json

SETTINGS_FILE = "settings.json"


def find_store(folder: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The content of store.json where the store is there and was made from the same files and settings.

    Returns:
        None where the way is free.

    Raises:
        DataError: Something else is there, or the store is damaged.
    """
    if not folder.exists():
        return None
    if not (folder / COMPLETE_FILE).is_file():
        raise DataError(f"{folder} exists and is no complete store; give another folder, or delete it.")
    meta = read_meta(folder)
    if meta.get("settings") == settings:
        return meta
    if overwrite:
        return None
    raise DataError(
        f"{folder} holds a store made from other files or settings; give another folder, or set overwrite=true to "
        "replace it."
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of store.json.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        meta: dict[str, Any] = parse_json((folder / META_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / META_FILE} cannot be read ({error}); delete the store, or restore it.") from error
    return meta


@contextmanager
def alone_at(folder: Path) -> Iterator[None]:
    """Keeps every other prepare away from a folder.

    Raises:
        DataError: Another process is at work there, or the file system has no locks.
    """
    path = folder.with_name(folder.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            held = stack.enter_context(locked(path, wait=False))
        except OSError as error:
            raise DataError(
                f"{path} cannot be locked ({error.strerror}), so a second prepare could not be kept away; give a "
                "folder on a file system with locks, and copy the store afterwards."
            ) from error
        if not held:
            raise DataError(
                f"another framework.prepare is at work on {folder} ({holder_of(path)}); wait until it has ended, or "
                "give another folder."
            )
        yield


@dataclass(frozen=True)
class PartialFolder:
    """The folder `<folder>.partial`, in which a store is made and its passes leave what they found.

    Attributes:
        folder: The final folder of the store.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """Itself."""
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def store(self) -> Path:
        """The store that grows."""
        return self.path / "store"

    @property
    def _replaced(self) -> Path:
        return self.folder.with_name(self.folder.name + ".replaced")

    def has(self, settings: dict[str, Any]) -> bool:
        """Whether an earlier start with the same settings left something here."""
        told = self.path / SETTINGS_FILE
        return told.is_file() and told.read_text(encoding="utf-8", errors="replace") == _as_text(settings)

    def open(self, settings: dict[str, Any]) -> None:
        """Leaves what an earlier start with the same settings left, else makes an empty folder."""
        if self.has(settings):
            return
        self.remove()
        self.store.mkdir(parents=True)
        fresh = self.path / (SETTINGS_FILE + ".new")
        fresh.write_text(_as_text(settings), encoding="utf-8")
        fresh.replace(self.path / SETTINGS_FILE)

    def put_in_place(self) -> None:
        """Gives the finished store its name; what was there is replaced."""
        if self.folder.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.folder.rename(self._replaced)
        self.store.rename(self.folder)
        self.tidy()

    def tidy(self) -> None:
        """Removes what is not needed any more now that the store is in its place."""
        self.remove()
        shutil.rmtree(self._replaced, ignore_errors=True)

    def remove(self) -> None:
        """Removes it with all that it holds."""
        shutil.rmtree(self.path, ignore_errors=True)


def _as_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
