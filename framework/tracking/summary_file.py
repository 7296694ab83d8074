"""Writes and reads summary.json: how a run ended, and its metrics. Readers never see a partly written file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError
from framework.files import write_atomic
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
"""Type of each required key. A summary with other types counts as damaged."""


def write_summary(run_folder: Path, summary: Mapping[str, Any]) -> None:
    """Replaces the summary of a run.

    Raises:
        CheckpointError: Writing failed; an earlier summary is unchanged.
    """
    try:
        write_atomic(run_folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"{run_folder / SUMMARY_FILE} could not be written ({error}). Free disk space or make the folder "
            "writable, and start the run again. No step is trained twice."
        ) from error


def read_summary(run_folder: Path) -> dict[str, Any] | None:
    """Reads the summary of a run; None if it is missing or damaged."""
    summary = read_object(run_folder / SUMMARY_FILE)
    is_valid = all(isinstance(summary.get(key), kind) for key, kind in _KEYS.items())
    return summary if is_valid else None
