"""Names on disk: step folders, what makes one complete, which is the newest, how one goes.

A checkpoint is written as `step_00000120.tmp`, renamed, and then marked by COMPLETE, which lists its files (see
integrity.py); where there is no rename it is written as `step_00000120`. Only what has COMPLETE is ever read; nothing
that has it is ever written to again.
"""

import json
import re
from pathlib import Path
from typing import Any

from framework.checkpoint.storage import Location, has_rename, location, move, remove_tree, sync_folder, write_whole
from framework.errors import CheckpointError
from framework.files import parse_json

FORMAT = 1
"""Of state.json and of the keys of the tensors; a reader refuses what it does not know."""

CHECKPOINTS = "checkpoints"
"""The folder of step folders in a run folder."""

COMPLETE = "COMPLETE"
STATE = "state.json"
DAMAGED = "DAMAGED"
"""What COMPLETE is called in a checkpoint that was found damaged."""

_STEP_FOLDER = re.compile(r"step_(\d{8,})")


class DamagedError(CheckpointError):
    """A checkpoint is not as it was written, so that an older one may take its place.

    Attributes:
        reason: What is wrong with which file.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        """The reason and the remedy."""
        return f"{self.reason}; use an older checkpoint."


def checkpoints_folder(run_folder: Path, place: str | None) -> Location:
    """Returns the folder of a run's checkpoints.

    Args:
        run_folder: Run folder; its name is the run id.
        place: `run.checkpoints`; None: they are kept in the run folder.

    Raises:
        ConfigError: The URL cannot be used here.
    """
    return run_folder / CHECKPOINTS if place is None else location(place) / run_folder.resolve().name


def step_folder(checkpoints: Location, step: int) -> Location:
    """Folder of the checkpoint after `step` completed steps."""
    return checkpoints / f"step_{step:08d}"


def temporary_folder(checkpoints: Location, step: int) -> Location:
    """Where that checkpoint is written before it is whole: beside, or in its own folder where there is no rename."""
    return checkpoints / f"step_{step:08d}.tmp" if has_rename(checkpoints) else step_folder(checkpoints, step)


def step_of(folder: Location) -> int:
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


def complete_checkpoints(checkpoints: Location) -> list[Location]:
    """All complete checkpoints, oldest first; a folder that does not exist holds none.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    try:
        if not checkpoints.is_dir():
            return []
        folders = [
            path for path in checkpoints.iterdir() if _STEP_FOLDER.fullmatch(path.name) and (path / COMPLETE).is_file()
        ]
    except OSError as error:
        raise CheckpointError(f"{checkpoints} cannot be read ({error}); make it readable, and start again.") from error
    return sorted(folders, key=step_of)


def newest_complete(checkpoints: Location) -> Location | None:
    """Returns the complete checkpoint with the most steps; None if there is none.

    A running training that keeps one checkpoint may replace it between listing and reading, so that both are missed.
    The folder is therefore listed a second time if it appears empty.
    """
    return next(reversed(complete_checkpoints(checkpoints) or complete_checkpoints(checkpoints)), None)


def read_state(folder: Location) -> dict[str, Any]:
    """Reads state.json: `format`, `step`, and what was saved as extra.

    Raises:
        DamagedError: It cannot be read.
        CheckpointError: It is of another format.
    """
    state = read_json(folder / STATE)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')}, this version reads {FORMAT}; "
            "use the version of Cloze that wrote it."
        )
    return state


def read_json(path: Location) -> dict[str, Any]:
    """Reads a JSON file of a checkpoint.

    Raises:
        DamagedError: It cannot be read, or holds no JSON object.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} does not hold a JSON object")
    return value


def write_json(path: Location, value: dict[str, Any]) -> None:
    """Writes a JSON file so that it is whole or not there."""
    write_whole(path, json.dumps(value, indent=1))


def remove(folder: Location) -> None:
    """Deletes a checkpoint, its COMPLETE first: a deletion that is cut short leaves nothing that looks whole."""
    (folder / COMPLETE).unlink(missing_ok=True)
    sync_folder(folder)
    remove_tree(folder)


def set_aside(folder: Location) -> None:
    """Makes a damaged checkpoint count as not complete, so that a run may write its step again; its files stay."""
    if (folder / COMPLETE).exists():
        move(folder / COMPLETE, DAMAGED)
        sync_folder(folder)


def remove_leftovers(checkpoints: Location) -> None:
    """Deletes what cut writes and deletions left, and damaged checkpoints, where a newer complete checkpoint stands."""
    newest = newest_complete(checkpoints)
    if newest is None:
        return
    for path in checkpoints.iterdir():
        match = _STEP_FOLDER.fullmatch(path.name.removesuffix(".tmp"))
        if match and int(match.group(1)) < step_of(newest) and not (path / COMPLETE).exists():
            remove_tree(path)
