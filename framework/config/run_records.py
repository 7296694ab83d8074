"""provenance.json and the records of a run folder that a start can rebuild where a crash has damaged them."""

from pathlib import Path
from typing import Any

from framework.checkpoint.layout import DAMAGED, step_folder, step_of
from framework.checkpoint.storage import Location
from framework.tracking.console import open_console
from framework.tracking.progress_file import PROGRESS_FILE, read_progress
from framework.tracking.run_files import PROVENANCE_FILE, read_object
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

_SAVED_AT_END = ("finished", "pruned", "preempted")


def read_starts(run_folder: Path) -> list[dict[str, Any]]:
    """Reads what provenance.json holds of each start, the first one first; empty where it is missing or damaged."""
    starts = read_object(run_folder / PROVENANCE_FILE).get("starts")
    is_whole = isinstance(starts, list) and all(
        isinstance(start, dict) and isinstance(start.get("fingerprints"), dict) for start in starts
    )
    return list(starts) if is_whole and starts else []


def report_damaged_records(run_folder: Path) -> None:
    """Says which records are damaged and what becomes of them; keeps what is left of provenance.json beside it.

    Call on rank 0, before the start writes its own.
    """
    console = open_console()
    summary, provenance = run_folder / SUMMARY_FILE, run_folder / PROVENANCE_FILE
    if summary.is_file() and read_summary(run_folder) is None:
        console.print(
            f"{summary} is damaged ({_extent(summary)}). It is written anew from metrics.jsonl when this start ends.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if provenance.is_file() and not read_starts(run_folder):
        aside = provenance.with_name(PROVENANCE_FILE + ".damaged")
        said = f"{provenance} is damaged ({_extent(provenance)}). It is kept as {aside.name}, and a new one begins "
        said += "with this start. Whether the data is the same as at the first start cannot be checked."
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        provenance.replace(aside)


def find_lost_step(run_folder: Path, checkpoints: Location, newest: Location | None) -> int | None:
    """Returns the step of the newest checkpoint that a run has written, where that one is gone; None where it is not.

    Versions before wrote no progress.json: of their runs summary.json tells the step, where they left as planned.

    Args:
        run_folder: Folder of the run.
        checkpoints: Folder of its checkpoints.
        newest: Newest complete checkpoint there.
    """
    step = read_progress(run_folder)
    summary = read_summary(run_folder) if step is None else None
    if summary is not None and summary["ended"] in _SAVED_AT_END and summary["steps"] > 0:
        step = summary["steps"]
    if step is None or (newest is not None and step_of(newest) >= step):
        return None
    return None if (step_folder(checkpoints, step) / DAMAGED).exists() else step


def report_gap(run_folder: Path, checkpoint: Location | None, lost_step: int | None) -> None:
    """Says that a run begins again, or earlier than it could, and forgets a lost checkpoint that training replaces.

    Call on rank 0, for a run that was started before.
    """
    if checkpoint is None:
        found = f"step {lost_step:,} was its newest checkpoint and is gone" if lost_step else "it has no checkpoint yet"
        said = f"Starting {run_folder} again at step 0: {found}."
        for name in (PROGRESS_FILE, SUMMARY_FILE):
            (run_folder / name).unlink(missing_ok=True)
    elif lost_step is not None:
        said = f"The newest checkpoint of {run_folder}, step {lost_step:,}, is gone. "
        said += f"The steps after {checkpoint.name} are trained again."
    else:
        return
    open_console().print(said, highlight=False, markup=False, soft_wrap=True)


def _extent(path: Path) -> str:
    size = path.stat().st_size
    return f"{size} bytes that are no such record" if size else "it is empty"
