"""Writes and reads data.json and skipped_rows.jsonl, the facts about the data in a run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.data.fact_warnings import warnings_of
from framework.data.facts import SplitFacts, skipped_rows
from framework.files import write_atomic
from framework.tracking.run_files import read_object

DATA_FILE = "data.json"
SKIPPED_ROWS_FILE = "skipped_rows.jsonl"


def write_data_facts(run_folder: Path, splits: Mapping[str, SplitFacts]) -> None:
    """Writes both files; skipped_rows.jsonl only if rows were skipped."""
    content = {
        "splits": {split: facts.as_json() for split, facts in splits.items()},
        "warnings": warnings_of(splits),
    }
    write_atomic(run_folder / DATA_FILE, _json_line(content))
    rows = [_json_line(row) for row in skipped_rows(splits)]
    if rows:
        write_atomic(run_folder / SKIPPED_ROWS_FILE, "".join(rows))
    else:
        (run_folder / SKIPPED_ROWS_FILE).unlink(missing_ok=True)


def read_data_facts(run_folder: Path) -> dict[str, Any]:
    """Reads `splits` and `warnings`; empty for a run folder without them, or with a damaged file."""
    return read_object(run_folder / DATA_FILE)


def _json_line(value: Any) -> str:
    """Returns the value as a line of JSON. Undecodable bytes of paths become escapes."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace").decode("utf-8")
