"""Writes and reads progress.json: the step of the newest checkpoint, so that a start detects missing checkpoints."""

import json
from pathlib import Path

from framework.files import write_atomic
from framework.tracking.run_files import read_object

PROGRESS_FILE = "progress.json"

_STEP = "checkpoint_step"


def write_progress(run_folder: Path, step: int) -> None:
    """Records that the checkpoint of a step is complete, or, with step 0, that a run begins without one.

    Raises:
        OSError: Writing failed.
    """
    write_atomic(run_folder / PROGRESS_FILE, json.dumps({_STEP: step}) + "\n")


def read_progress(run_folder: Path) -> int | None:
    """Returns the step of the newest complete checkpoint, 0 before the first; None if the file is lost or damaged."""
    step = read_object(run_folder / PROGRESS_FILE).get(_STEP)
    return step if isinstance(step, int) else None
