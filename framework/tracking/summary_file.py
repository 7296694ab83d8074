"""summary.json: how a run ended and what it reached; replaced whole, so that a reader never sees half of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError
from framework.files import write_whole
from framework.tracking.run_files import read_object

SUMMARY_FILE = "summary.json"

_KEYS: Mapping[str, Any] = {
    "ended": str,
    "why": str | None,
    "steps": int,
    "max_steps": int,
    "tokens": int,
    "wall_seconds": float | int,
    "tokens_per_second": float | int | None,
    "last": dict,
    "best": dict | None,
}
"""Types by key of every summary; a summary with other types is damaged."""


def write_summary(run_folder: Path, summary: Mapping[str, Any]) -> None:
    """Replaces the summary of a run.

    Raises:
        CheckpointError: The disk refused; an earlier summary is as it was.
    """
    try:
        write_whole(run_folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"{run_folder / SUMMARY_FILE} could not be written: the disk refused ({error}). Make room, or make the "
            "folder writable, and start again: no step is trained twice."
        ) from error


def read_summary(run_folder: Path) -> dict[str, Any] | None:
    """Reads the summary of a run; None if it is missing or damaged."""
    summary = read_object(run_folder / SUMMARY_FILE)
    is_whole = all(isinstance(summary.get(key), kind) for key, kind in _KEYS.items())
    return summary if is_whole else None
