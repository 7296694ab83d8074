"""provenance.json and the records of a run folder that a start can rebuild where a crash has damaged them."""

from pathlib import Path
from typing import Any

from framework.tracking.console import open_console
from framework.tracking.run_files import PROVENANCE_FILE, read_object
from framework.tracking.summary_file import SUMMARY_FILE, read_summary


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
        said = (
            f"{provenance} is damaged ({_extent(provenance)}). It is kept as {aside.name}, and a new one begins with "
        )
        said += "this start. Whether the data is the same as at the first start cannot be checked."
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        provenance.replace(aside)


def _extent(path: Path) -> str:
    size = path.stat().st_size
    return f"{size} bytes that are no such record" if size else "it is empty"
