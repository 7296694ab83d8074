"""Folders that are written under another name and take their place when they are whole."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from framework.errors import CheckpointError

_PROBE_BYTES = 1 << 16


def check_new_folder(folder: Path) -> None:
    """Tries whether a folder can be written, before the work that fills it; leaves nothing behind.

    Raises:
        CheckpointError: It cannot be made there, or the disk is full.
    """
    beside = _real(folder).parent
    while not beside.exists() and beside != beside.parent:
        beside = beside.parent
    try:
        trial = Path(tempfile.mkdtemp(prefix=".cloze-", dir=beside))
        try:
            with (trial / "probe").open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise _refused(folder, error) from error


@contextmanager
def new_folder(folder: Path, own: Collection[str]) -> Iterator[Path]:
    """Gives an empty folder to be filled, which takes the place of `folder` when the block ends without an error.

    A symlink stays, and the folder that it leads to is replaced.

    Args:
        folder: The final place. What an earlier folder there holds beside `own` moves into the new one.
        own: Names of what earlier writers of this program left there, which goes.

    Raises:
        CheckpointError: The disk refuses.
    """
    target = _real(folder)
    temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _put_in_place(temporary, target, own)
    except (OSError, SafetensorError) as error:
        raise _refused(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path, own: Collection[str]) -> None:
    """Renames the new folder; an earlier one goes only when the new one stands and has what was not ours."""
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


def _real(folder: Path) -> Path:
    try:
        return Path(os.path.realpath(folder))
    except (OSError, ValueError) as error:
        raise _refused(folder, error) from error


def _refused(folder: Path, error: Exception) -> CheckpointError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(
        f"{folder} cannot be written ({why}). The folder above it must exist or be made, permit it and have room. Free "
        "the disk, or choose another output."
    )
