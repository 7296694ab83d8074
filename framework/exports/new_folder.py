"""Writes folders under a temporary name and renames them when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from framework.errors import CheckpointError
from framework.files import check_room, temporary_path


def check_new_folder(folder: Path) -> None:
    """Checks that a folder can be written, before its content is computed. Leaves nothing on disk.

    Raises:
        CheckpointError: The folder cannot be created, or the disk is full.
    """
    parent = _resolve(folder).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        trial = Path(tempfile.mkdtemp(prefix=".cloze-", dir=parent))
        try:
            with (trial / "probe").open("w") as file:
                check_room(file)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise _write_error(folder, error) from error


@contextmanager
def new_folder(folder: Path, own: Collection[str]) -> Iterator[Path]:
    """Yields an empty folder to fill, which replaces `folder` when the block ends without an error.

    A symlink is kept, and its target is replaced.

    Args:
        folder: Final path. Entries of an existing folder that are not in `own` are moved into the new one.
        own: Names of entries that Cloze wrote earlier and that are deleted.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    target = _resolve(folder)
    temporary = temporary_path(target)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _replace_folder(temporary, target, own)
    except (OSError, SafetensorError) as error:
        raise _write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, target: Path, own: Collection[str]) -> None:
    """Renames the new folder and moves foreign entries into it before the earlier folder is deleted."""
    if not target.exists():
        temporary.rename(target)
        return
    earlier = temporary.with_suffix(".old")
    shutil.rmtree(earlier, ignore_errors=True)
    target.rename(earlier)
    temporary.rename(target)
    for entry in earlier.iterdir():
        if entry.name not in own and not os.path.lexists(target / entry.name):
            entry.rename(target / entry.name)
    shutil.rmtree(earlier, ignore_errors=True)


def _resolve(folder: Path) -> Path:
    try:
        return Path(os.path.realpath(folder))
    except (OSError, ValueError) as error:
        raise _write_error(folder, error) from error


def _write_error(folder: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(
        f"{folder} cannot be written ({reason}). Its parent folder must be writable, and the disk must have space. "
        "Free disk space, or choose another output."
    )
