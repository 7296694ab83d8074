"""Joins input rows with their predictions, in input order, and reports the rows that were skipped."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from framework.inference.input_rows import InputRow

_RENAMED = "input_"


def join_rows(rows: Sequence[InputRow], predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Joins input rows and predictions: input columns first, then predicted keys; nulls and `error` for bad rows.

    An input column with the name of a predicted key is renamed to `input_NAME`, unless it is a field of the task that
    the predictions repeat.

    Args:
        rows: All input rows.
        predictions: Predictions for the rows that can be predicted, in row order.
    """
    remaining = iter(predictions)
    keys = list(dict.fromkeys(name for each in predictions for name in each))
    fields = {name for each in rows if each.row is not None for name in each.row.values}
    columns = list(dict.fromkeys(name for each in rows for name in each.kept))
    names = _free_names(columns, keys, fields)
    joined = []
    for each in rows:
        row = {name: each.kept.get(column) for column, name in names.items()}
        if each.row is not None:
            joined.append(row | dict(next(remaining)))
        else:
            joined.append(row | {key: row.get(key) for key in keys} | {"error": each.error})
    return joined


def _free_names(columns: Sequence[str], keys: Sequence[str], fields: Collection[str]) -> dict[str, str]:
    """Returns the name of each column in the output."""
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while (name in keys and name not in fields) or (name != column and name in columns):
            name = _RENAMED + name
        names[column] = name
    return names


def report_bad_rows(inputs: Sequence[InputRow]) -> None:
    """Reports on standard error how many rows were skipped, and the reason for the first."""
    bad = [each for each in inputs if each.row is None]
    if bad:
        sys.stderr.write(f"{len(bad)} of {len(inputs)} rows are not predicted. For example: {bad[0].error}\n")
