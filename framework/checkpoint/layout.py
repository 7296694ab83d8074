"""Layout of checkpoints on disk: names of step folders, search for complete ones, deletion.

A checkpoint is written to `step_00000120.tmp`, renamed to `step_00000120`, and then marked by the file COMPLETE, which
lists its files (see integrity.py). Storage that cannot rename is written to `step_00000120` directly. Readers ignore
folders without COMPLETE. A folder with COMPLETE is never written to again.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

from framework.checkpoint.storage import Location, has_rename, location, move, remove_tree, sync_folder, write_atomic
from framework.errors import CheckpointError
from framework.files import read_json_object

Weights = Literal["auto", "raw", "ema"]
"""Weights to read: "raw" the trained ones, "ema" their moving average, "auto" the average if the run kept one."""

FORMAT = 1
"""Version of state.json and of the tensor keys. Readers reject other versions."""

CHECKPOINTS = "checkpoints"
"""Name of the folder inside a run folder that holds the step folders."""

COMPLETE = "COMPLETE"
STATE = "state.json"
DAMAGED = "DAMAGED"
"""Name to which COMPLETE is renamed in a damaged checkpoint."""

_STEP_FOLDER = re.compile(r"step_(\d{8,})")


class DamagedError(CheckpointError):
    """A checkpoint that differs from what was written. Readers may use an older one instead.

    Attributes:
        reason: File and problem, without the remedy.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        """Returns the reason and the remedy."""
        return f"{self.reason}. Use an older checkpoint."


def checkpoints_folder(run_folder: Path, root: str | None) -> Location:
    """Returns the folder of a run's checkpoints.

    Args:
        run_folder: Run folder; its name is the run id.
        root: Path or URL from `run.checkpoints`; None keeps checkpoints in the run folder.

    Raises:
        ConfigError: The URL cannot be used.
    """
    return run_folder / CHECKPOINTS if root is None else location(root) / run_folder.resolve().name


def step_folder(checkpoints: Location, step: int) -> Location:
    """Returns the folder of the checkpoint after `step` completed steps."""
    return checkpoints / f"step_{step:08d}"


def temporary_folder(checkpoints: Location, step: int) -> Location:
    """Returns the folder to which a checkpoint is written: the step folder itself if the storage cannot rename."""
    return checkpoints / f"step_{step:08d}.tmp" if has_rename(checkpoints) else step_folder(checkpoints, step)


def step_of(folder: Location) -> int:
    """Returns the number of completed steps from the name of a checkpoint.

    Raises:
        CheckpointError: The folder is not named like a checkpoint.
    """
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(
            f"{folder} is not named like a checkpoint. Give a folder such as checkpoints/step_00000120."
        )
    return int(match.group(1))


def complete_checkpoints(checkpoints: Location) -> list[Location]:
    """Returns all complete checkpoints, oldest first; none if the folder does not exist.

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
        raise CheckpointError(f"{checkpoints} cannot be read ({error}). Make it readable, and start again.") from error
    return sorted(folders, key=step_of)


def newest_complete(checkpoints: Location) -> Location | None:
    """Returns the complete checkpoint with the most steps; None if there is none.

    A running training that keeps one checkpoint may replace it between listing and reading, so that both are missed.
    The folder is therefore listed a second time if it appears empty.
    """
    return next(reversed(complete_checkpoints(checkpoints) or complete_checkpoints(checkpoints)), None)


def read_state(folder: Location) -> dict[str, Any]:
    """Reads state.json: `format`, `step`, and the `extra` values of the save.

    Raises:
        DamagedError: The file cannot be read.
        CheckpointError: The file has another format version.
    """
    state = read_json(folder / STATE)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')}. This version of Cloze reads format {FORMAT}. "
            "Use the version that wrote it."
        )
    return state


def read_json(path: Location) -> dict[str, Any]:
    """Reads a JSON file of a checkpoint.

    Raises:
        DamagedError: The file cannot be read, or holds no JSON object.
    """
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read as JSON ({error})") from error


def write_json(path: Location, value: dict[str, Any]) -> None:
    """Writes a JSON file completely or not at all."""
    write_atomic(path, json.dumps(value, indent=1))


def remove(folder: Location) -> None:
    """Deletes a checkpoint. COMPLETE goes first, so that an interrupted deletion leaves no complete checkpoint."""
    (folder / COMPLETE).unlink(missing_ok=True)
    sync_folder(folder)
    remove_tree(folder)


def mark_damaged(folder: Location) -> None:
    """Renames COMPLETE of a damaged checkpoint, so that the run may write this step again. Its files stay."""
    if (folder / COMPLETE).exists():
        move(folder / COMPLETE, DAMAGED)
        sync_folder(folder)


def remove_leftovers(checkpoints: Location) -> None:
    """Deletes step folders without COMPLETE (interrupted or damaged) that are older than the newest complete one."""
    newest = newest_complete(checkpoints)
    if newest is None:
        return
    for path in checkpoints.iterdir():
        match = _STEP_FOLDER.fullmatch(path.name.removesuffix(".tmp"))
        if match and int(match.group(1)) < step_of(newest) and not (path / COMPLETE).exists():
            remove_tree(path)
