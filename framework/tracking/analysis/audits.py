"""Writes and reads the results of audits, `analysis/audit_NAME.json`, and builds their sections of the report.

Keys: `facts`, `measure`, `rate`, `interval` (`low`, `high`, `method`; null: none), `cases` (their number), `summary`,
`parts` (rows of a table), `worst` (failed cases), `notes`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.tracking.analysis.content import FOLDER, write_analysis
from framework.tracking.analysis.page import Section, Table
from framework.tracking.run_files import read_object

_PREFIX = "audit_"
_KEYS = {"facts", "measure", "rate", "interval", "cases", "summary", "parts", "worst", "notes"}
_NO_COLOURS: Mapping[str, Sequence[str]] = {"pieces": (), "first_pieces": ()}


def write_audit(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Writes the result of an audit; it replaces an earlier one of the same name atomically.

    Args:
        folder: Run folder, or another folder for an export.
        name: Name of the audit.
        values: Result with the keys of this module.

    Raises:
        OSError: Writing failed.
    """
    write_analysis(folder, f"{_PREFIX}{name}", values)


def read_audits(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads all complete results of audits in a folder by name, in alphabetical order."""
    files = sorted((folder / FOLDER).glob(f"{_PREFIX}*.json"))
    audits = {path.stem.removeprefix(_PREFIX): read_object(path) for path in files}
    return {name: values for name, values in audits.items() if values.keys() >= _KEYS}


def describe_rate(values: Mapping[str, Any]) -> str:
    """Describes a rate with its interval, for example "failed cases: 0.213 (0.209 to 0.217, Wilson), 9,420 cases"."""
    interval = values["interval"]
    limits = f" ({interval['low']:.3f} to {interval['high']:.3f}, {interval['method']})" if interval else ""
    return f"{values['measure']}: {values['rate']:.3f}{limits}, {values['cases']:,} cases"


def audit_section(name: str, values: Mapping[str, Any]) -> Section:
    """Builds the section of the report about one audit.

    Args:
        name: Name of the audit.
        values: Result from `read_audits`.
    """
    facts = [f"{fact}: {value}" for fact, value in values["facts"].items() if value]
    return Section(
        f"{_PREFIX}{name}",
        f"Audit: {name.replace('_', ' ')}",
        details=" · ".join([values["summary"], describe_rate(values), *facts]),
        warnings=values["notes"],
        tables=_parts(values["parts"]),
        examples=[{**case, "place": case["part"], "numbers": {}, **_NO_COLOURS} for case in values["worst"]],
    )


def _parts(parts: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not parts:
        return []
    header = [column.replace("_", " ") for column in parts[0]]
    return [Table(header, [[format_cell(value) for value in part.values()] for part in parts], "By part")]


def format_cell(value: str | float | None) -> str:
    """Formats a value of a table; None becomes an empty cell."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
