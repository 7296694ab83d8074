"""Writes and reads the error analysis of a split, `analysis/NAME.json` in a run folder. All plots are drawn from it.

Keys: `facts`, `best_metric`, `metrics`, `classes`, `rows` (their number), `score_name`, `score` (mean over rows),
`lengths`, `confusion`, `calibration`, `numbers`, `examples`, and optionally `galleries` (tables with pictures) and
`explanations` (`framework.tracking.analysis.explanations`).
Numbers are rounded, so that they do not depend on how a split was packed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.data.tokenization.tokenizer import Tokenizer
from framework.files import write_atomic
from framework.metrics.calibration import calibration_bins, expected_calibration_error
from framework.tasks.examination import Confusion, ExaminedRow, ExaminedSplit, Outcomes, outcomes_of_rows
from framework.tracking.analysis.galleries import GALLERIES, gallery_values
from framework.tracking.run_files import read_object

if TYPE_CHECKING:
    from framework.data.planning.plan import SequenceSource

FOLDER = "analysis"
_DECIMALS = 6
_SHOWN_OF_FINGERPRINT = 12
_MOST_BUCKETS = 8
_ROWS_OF_A_BUCKET = 10
_MOST_POINTS = 2000
_MOST_CHARACTERS = 2000
_NORMAL_95 = 1.96
_KEYS = {
    *("facts", "best_metric", "metrics", "classes", "rows", "score_name", "score"),
    *("lengths", "confusion", "calibration", "numbers", "examples"),
}


def split_analysis(
    split: ExaminedSplit, facts: Mapping[str, str], tokenizer: Tokenizer, num_examples: int
) -> dict[str, Any]:
    """Returns the analysis of one split as values for JSON.

    Args:
        split: Examined split.
        facts: Further facts to show, such as the weights that were used.
        tokenizer: Tokenizer that decodes the tokens of rows without a text.
        num_examples: Number of worst rows that are kept with their texts; 0 keeps no text and no picture.
    """
    rows, examination = split.examination.rows, split.examination
    scores = [row.score for row in rows if row.score is not None]
    outcomes = examination.outcomes or outcomes_of_rows(rows, "predicted labels")
    return {
        "facts": {**facts, "data fingerprint": split.source.fingerprint[:_SHOWN_OF_FINGERPRINT]},
        "best_metric": split.best_metric,
        "metrics": {name: _rounded(value) if math.isfinite(value) else None for name, value in split.metrics.items()},
        "classes": list(split.classes),
        "rows": len(rows),
        "score_name": examination.score_name,
        "score": _rounded(float(np.mean(scores))) if scores else None,
        "lengths": length_buckets(rows),
        "confusion": _confusion(examination.confusion),
        "calibration": _calibration(outcomes),
        "numbers": _numbers(examination.numbers),
        "examples": [
            _example(rows[index], index, split.source, tokenizer) for index in worst_rows(rows)[:num_examples]
        ],
        **({GALLERIES: gallery_values(examination.galleries, num_examples)} if examination.galleries else {}),
    }


def worst_rows(rows: Sequence[ExaminedRow]) -> list[int]:
    """Returns the indices of the rows that are not fully correct, worst first. Ties keep their order.

    Rows with a loss are ranked by it, the largest first. Others are ranked by score, the lowest first, and among equal
    scores by confidence, the most confident first.
    """

    def sort_key(index: int) -> tuple[float, float]:
        row = rows[index]
        if row.loss is not None:
            return -_rounded(row.loss), 0.0
        return _rounded(row.score or 0.0), -_rounded(row.confidence or 0.0)

    wrong = [
        index
        for index, row in enumerate(rows)
        if (row.score is None and row.loss is not None) or (row.score is not None and row.score < 1)
    ]
    return sorted(wrong, key=sort_key)


def length_buckets(rows: Sequence[ExaminedRow]) -> list[dict[str, Any]]:
    """Groups rows of similar length into buckets of about the same size, and returns the means of each bucket.

    Rows without a score and a loss are ignored.

    Returns:
        Per bucket: `first` and `last` length in tokens, `rows`, `score` with `score_error` (half of its 95 % interval,
        from the normal distribution), and `loss`. Values that the rows do not have are None.
    """
    measured = [row for row in rows if row.score is not None or row.loss is not None]
    if not measured:
        return []
    lengths = np.array([row.length for row in measured])
    number = max(1, min(_MOST_BUCKETS, len(measured) // _ROWS_OF_A_BUCKET))
    edges = np.unique(np.quantile(lengths, np.arange(1, number + 1) / number, method="inverted_cdf"))
    bucket_of = np.searchsorted(edges, lengths)
    buckets = []
    for bucket in range(len(edges)):
        inside = [measured[index] for index in np.flatnonzero(bucket_of == bucket).tolist()]
        scores = np.array([row.score for row in inside if row.score is not None])
        losses = np.array([row.loss for row in inside if row.loss is not None])
        buckets.append(
            {
                "first": min(row.length for row in inside),
                "last": max(row.length for row in inside),
                "rows": len(inside),
                "score": _rounded(scores.mean()) if len(scores) else None,
                "score_error": _rounded(_NORMAL_95 * scores.std() / math.sqrt(len(scores))) if len(scores) else None,
                "loss": _rounded(losses.mean()) if len(losses) else None,
            }
        )
    return buckets


def most_confused(confusion: Mapping[str, Any], count: int) -> list[tuple[str, str, int]]:
    """Returns the most frequent (expected, predicted) pairs of different labels with their counts. Ties keep order."""
    labels = confusion["labels"]
    wrong = [cell for cell in confusion["cells"] if cell[0] != cell[1]]
    return [(labels[row], labels[column], times) for row, column, times in sorted(wrong, key=lambda cell: -cell[2])][
        :count
    ]


def write_analysis(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> None:
    """Writes an analysis; it replaces an earlier one of the same name atomically.

    Raises:
        OSError: Writing failed.
    """
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.json", json.dumps(dict(analysis), indent=1, ensure_ascii=False) + "\n")


def read_analyses(run_folder: Path) -> dict[str, dict[str, Any]]:
    """Reads all complete analyses of a run folder by name: validation, test, then others alphabetically."""
    files = {path.stem: path for path in (run_folder / FOLDER).glob("*.json")}
    order = {"validation": 0, "test": 1}
    names = sorted(files, key=lambda name: (order.get(name, len(order)), name))
    analyses = {name: read_object(files[name]) for name in names}
    return {name: analysis for name, analysis in analyses.items() if analysis.keys() >= _KEYS}


def _rounded(value: float) -> float:
    return round(float(value), _DECIMALS)


def _confusion(confusion: Confusion | None) -> dict[str, Any] | None:
    if confusion is None or not confusion.counts.any():
        return None
    rows, columns = np.nonzero(confusion.counts)
    cells = np.stack([rows, columns, confusion.counts[rows, columns]], axis=1)
    return {"labels": list(confusion.labels), "cells": cells.tolist()}


def _calibration(outcomes: Outcomes) -> dict[str, Any] | None:
    bins = calibration_bins(outcomes.probabilities, outcomes.is_correct)
    if not bins:
        return None
    return {
        "of": outcomes.of,
        "error": _rounded(expected_calibration_error(bins)),
        "bins": [{name: _rounded(value) for name, value in asdict(each).items()} for each in bins],
    }


def _numbers(numbers: np.ndarray | None) -> dict[str, Any] | None:
    """Returns at most _MOST_POINTS evenly spaced rows, because a plot cannot show more."""
    if numbers is None:
        return None
    kept = numbers[:: math.ceil(len(numbers) / _MOST_POINTS)]
    return {
        name: [_rounded(value) for value in kept[:, column]] for column, name in enumerate(("expected", "predicted"))
    }


def _example(row: ExaminedRow, index: int, source: SequenceSource, tokenizer: Tokenizer) -> dict[str, Any]:
    text = row.text if row.text is not None else _text_of_item(source, index, tokenizer)
    texts = {"text": text, "expected": row.expected, "predicted": row.predicted}
    numbers = {"confidence": row.confidence, "loss": row.loss, "score": row.score}
    return {
        "place": row.location or f"row {index + 1:,}",
        **{
            name: value if len(value) <= _MOST_CHARACTERS else value[:_MOST_CHARACTERS] + " …"
            for name, value in texts.items()
        },
        **{name: None if value is None else _rounded(value) for name, value in numbers.items()},
        "length": row.length,
    }


def _text_of_item(source: SequenceSource, index: int, tokenizer: Tokenizer) -> str:
    """Returns the decoded tokens of an item, one line per sequence."""
    # Imported here, because the module imports torch, which a report that is redrawn does not need.
    from framework.data.planning.plan import StepSequences

    batch = source.build(StepSequences(np.zeros(1, dtype=np.int64), np.array([index]), np.array([index])), step=0)
    sequences = batch.input_ids.split(list(batch.lengths))[: batch.num_sequences]
    return "\n".join(tokenizer.decode_batch([ids.tolist() for ids in sequences]))
