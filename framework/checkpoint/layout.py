"""Names on disk: step folders, what makes one complete, which is the newest, which may go.

A checkpoint is written as `step_00000120.tmp`, renamed, and then marked by COMPLETE, which lists its files and their
sizes. Only what has COMPLETE is ever read; nothing that has it is ever written to again.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError

FORMAT = 1
"""Of state.json and of the keys of the tensors; a reader refuses what it does not know."""

COMPLETE = "COMPLETE"
STATE = "state.json"

_STEP_FOLDER = re.compile(r"step_(\d{8,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` completed steps."""
    return checkpoints / f"step_{step:08d}"


def temporary_folder(checkpoints: Path, step: int) -> Path:
    """Where that checkpoint is written before it is whole."""
    return checkpoints / f"step_{step:08d}.tmp"


def step_of(folder: Path) -> int:
    """Completed steps of a checkpoint, from its name.

    Raises:
        CheckpointError: It is not named like a checkpoint.
    """
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(
            f"{folder} is not named like a checkpoint; give a folder such as checkpoints/step_00000120."
        )
    return int(match.group(1))


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """All complete checkpoints, oldest first; a folder that does not exist holds none."""
    if not checkpoints.is_dir():
        return []
    folders = [
        path for path in checkpoints.iterdir() if _STEP_FOLDER.fullmatch(path.name) and (path / COMPLETE).is_file()
    ]
    return sorted(folders, key=step_of)


def newest_complete(checkpoints: Path) -> Path | None:
    """The complete checkpoint with the most steps; None where there is none."""
    return next(reversed(complete_checkpoints(checkpoints)), None)


def verify(folder: Path) -> None:
    """Checks that a checkpoint is whole: COMPLETE is there and every file has the size that was written.

    Raises:
        CheckpointError: It is not; the message names the file.
    """
    marker = folder / COMPLETE
    if not marker.is_file():
        raise CheckpointError(
            f"{folder} has no file {COMPLETE}, so it was not written to its end; use an older checkpoint."
        )
    sizes = _read_json(marker).get("file_sizes_bytes")
    if not isinstance(sizes, dict) or not sizes:
        raise CheckpointError(f"{marker} does not list the checkpoint's files; use an older checkpoint.")
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{path} {what}, but {size} bytes were written; use an older checkpoint.")


def read_state(folder: Path) -> dict[str, Any]:
    """Reads state.json: `format`, `step`, and what was saved as extra.

    Raises:
        CheckpointError: It cannot be read, or it is of another format.
    """
    state = _read_json(folder / STATE)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')}, this version reads {FORMAT}; "
            "use the version of Cloze that wrote it."
        )
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); use an older checkpoint.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; use an older checkpoint.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file so that it is whole or not there: written beside, flushed to disk, renamed."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_complete(folder: Path) -> None:
    """Writes COMPLETE with the sizes of all files."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    write_json(folder / COMPLETE, {"file_sizes_bytes": sizes})


def remove(folder: Path) -> None:
    """Deletes a checkpoint, its COMPLETE first: a deletion that is cut short leaves nothing that looks whole."""
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def prune(checkpoints: Path, keep_last: int) -> None:
    """Deletes all but the newest complete checkpoints, and what is left of writes that older kills cut short.

    Call it on one rank, after a save. Nothing is deleted that is as new as the newest complete checkpoint or newer.
    """
    complete = complete_checkpoints(checkpoints)
    if not complete:
        return
    for folder in complete[: -max(keep_last, 1)]:
        remove(folder)
    newest = step_of(complete[-1])
    for path in checkpoints.iterdir():
        match = _STEP_FOLDER.fullmatch(path.name.removesuffix(".tmp"))
        if match and int(match.group(1)) < newest and not (path / COMPLETE).exists():
            shutil.rmtree(path)
