"""The data of a run in its folder: data.json, and skipped_rows.jsonl with every row that was skipped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.data.fact_warnings import warnings_of
from framework.data.facts import SplitFacts, skipped_rows
from framework.files import parse_json

DATA_FILE = "data.json"
SKIPPED_ROWS_FILE = "skipped_rows.jsonl"


def write_data_facts(run_folder: Path, splits: Mapping[str, SplitFacts]) -> None:
    """Writes both files; skipped_rows.jsonl only where rows were skipped."""
    found = {
        "splits": {split: facts.as_json() for split, facts in splits.items()},
        "warnings": warnings_of(splits),
    }
    _replace(run_folder / DATA_FILE, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in skipped_rows(splits)]
    if rows:
        _replace(run_folder / SKIPPED_ROWS_FILE, "".join(rows))
    else:
        (run_folder / SKIPPED_ROWS_FILE).unlink(missing_ok=True)


def read_data_facts(run_folder: Path) -> dict[str, Any]:
    """Reads `splits` and `warnings`; empty for a run folder without them, or with a damaged file."""
    file = run_folder / DATA_FILE
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    # A path may hold bytes that are no text.
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    temporary.replace(file)
