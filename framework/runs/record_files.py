"""Reads provenance.json, and handles records of a run folder that are damaged or missing after a crash."""

from pathlib import Path
from typing import Any

from framework.checkpoint.layout import DAMAGED, step_folder, step_of
from framework.checkpoint.storage import Location
from framework.tracking.console import print_line
from framework.tracking.metrics_jsonl import METRICS_FILE, read_rows
from framework.tracking.progress_file import read_progress, write_progress
from framework.tracking.run_files import PROVENANCE_FILE, read_object
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

_SAVED_AT_END = ("finished", "pruned", "preempted")


def read_starts(run_folder: Path) -> list[dict[str, Any]]:
    """Reads the starts in provenance.json, oldest first; empty if the file is missing or damaged."""
    starts = read_object(run_folder / PROVENANCE_FILE).get("starts")
    is_whole = isinstance(starts, list) and all(
        isinstance(start, dict) and isinstance(start.get("fingerprints"), dict) for start in starts
    )
    return list(starts) if is_whole and starts else []


def report_damaged_records(run_folder: Path) -> None:
    """Reports damaged records, and renames a damaged provenance.json.

    Call on rank 0, before the start writes its own records.
    """
    summary, provenance = run_folder / SUMMARY_FILE, run_folder / PROVENANCE_FILE
    if summary.is_file() and read_summary(run_folder) is None:
        print_line(f"{summary} is damaged ({_extent(summary)}). It is rebuilt from metrics.jsonl when this start ends.")
    if provenance.is_file() and not read_starts(run_folder):
        aside = provenance.with_name(PROVENANCE_FILE + ".damaged")
        text = f"{provenance} is damaged ({_extent(provenance)}). It is renamed to {aside.name}, and a new file begins "
        text += "with this start. Changes of the data since the first start cannot be detected."
        print_line(text)
        provenance.replace(aside)


def find_lost_step(run_folder: Path, checkpoints: Location, newest: Location | None) -> int | None:
    """Returns the newest step of a run whose checkpoint is missing on disk; None if no checkpoint is missing.

    The step is read from progress.json, which the first start creates. Earlier versions did not write this file, and it
    may be lost together with the checkpoints. Without it, the step is read from summary.json if the run ended as
    planned. Otherwise it is read from the newest row of metrics.jsonl, but only if the run has no checkpoint.

    Args:
        run_folder: Folder of the run.
        checkpoints: Folder of its checkpoints.
        newest: Newest complete checkpoint there.

    Raises:
        CheckpointError: A row of metrics.jsonl is damaged.
    """
    step = read_progress(run_folder)
    summary = read_summary(run_folder) if step is None else None
    if summary is not None and summary["ended"] in _SAVED_AT_END:
        step = summary["steps"]
    if step is None and newest is None:
        step = max((row["step"] for row in read_rows(run_folder / METRICS_FILE)), default=0)
    if not step or (newest is not None and step_of(newest) >= step):
        return None
    return None if (step_folder(checkpoints, step) / DAMAGED).exists() else step


def begin_records(run_folder: Path, checkpoint: Location | None, lost_step: int | None, is_new: bool) -> None:
    """Reports that a run starts again at step 0 or at an older checkpoint, and resets progress.json for a start at 0.

    Call on rank 0.
    """
    text = ""
    if checkpoint is None:
        reason = f"its checkpoints up to step {lost_step:,} are missing" if lost_step else "it has no checkpoint yet"
        text = f"Starting {run_folder} again at step 0: {reason}."
        (run_folder / SUMMARY_FILE).unlink(missing_ok=True)
        write_progress(run_folder, 0)
    elif lost_step is not None:
        text = f"The newest checkpoint of {run_folder}, step {lost_step:,}, is missing. "
        text += f"The steps after {checkpoint.name} are trained again."
    if text and not is_new:
        print_line(text)


def _extent(path: Path) -> str:
    size = path.stat().st_size
    return f"{size} bytes that are not a valid record" if size else "the file is empty"
