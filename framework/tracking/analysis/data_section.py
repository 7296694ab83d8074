"""Builds the data section of a report: rows and texts of each split, labels, warnings."""

from collections.abc import Mapping
from typing import Any

from framework.tracking.analysis.page import Section, Table

_OWN_ROWS = {
    "rows used": "",
    "file": "file",
    "rows read": "read",
    "rows skipped": "skipped",
    "rows repaired": "repaired",
    "texts": "texts",
    "texts cut": "cut_texts",
    "longest sequence, tokens": "max_length",
    "tokens of all texts": "tokens",
    "tokens lost": "lost_share",
}
_SHARES = ("lost_share",)


def data_section(data_facts: Mapping[str, Any]) -> Section:
    """Builds the section from the result of `framework.tracking.data_facts`; without content if there are no facts."""
    splits: Mapping[str, Mapping[str, Any]] = data_facts.get("splits", {})
    if not splits or not isinstance(splits, Mapping):
        return Section("data", "Data")
    rows = {title: {split: _value(facts, key) for split, facts in splits.items()} for title, key in _OWN_ROWS.items()}
    for name in ("left_out", "notes"):
        for split, facts in splits.items():
            for title, value in facts.get(name, {}).items():
                rows.setdefault(title, dict.fromkeys(splits, ""))[split] = _formatted(value)
    cells = [(title, *values.values()) for title, values in rows.items() if any(values.values())]
    tables = [Table(("", *splits), cells, full_length=True), *_labels(splits)]
    return Section("data", "Data", warnings=data_facts.get("warnings", ()), tables=tables)


def _value(facts: Mapping[str, Any], key: str) -> str:
    if not key:  # rows, under their unit
        unit = next(iter(facts))
        return f"{facts[unit]:,}" + ("" if unit == "rows" else f" {unit}")
    if key not in facts:
        return ""
    return f"{facts[key]:.1%}" if key in _SHARES else _formatted(facts[key])


def _formatted(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _labels(splits: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Builds a table with one row per label and one column per split; empty if there are no labels."""
    labels = list(dict.fromkeys(label for facts in splits.values() for label in facts.get("labels", {})))
    rows = [(label, *(f"{facts.get('labels', {}).get(label, 0):,}" for facts in splits.values())) for label in labels]
    return [Table(("label", *splits), rows)] if rows else []
