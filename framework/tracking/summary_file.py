"""summary.json: how a run ended and what it reached; replaced whole, so that a reader never sees half of one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError

SUMMARY_FILE = "summary.json"


def write_summary(run_folder: Path, summary: Mapping[str, Any]) -> None:
    """Replaces the summary of a run.

    Raises:
        CheckpointError: The disk refused; an earlier summary is as it was.
    """
    temporary = run_folder / "summary.tmp"
    try:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, run_folder / SUMMARY_FILE)
    except OSError as error:
        raise CheckpointError(
            f"{run_folder / SUMMARY_FILE} could not be written: the disk refused ({error}). Make room, or make the "
            "folder writable, and start again: no step is trained twice."
        ) from error


def read_summary(run_folder: Path) -> dict[str, Any] | None:
    """Reads the summary of a run; None where the run was killed before it wrote one."""
    path = run_folder / SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
