"""Analyses of splits with invented rows."""

import numpy as np

from framework.data.flat_source import FlatSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.examination import Examination, ExaminedRow, ExaminedSplit, count_confusions
from framework.tracking.analysis.content import split_analysis

HOSTILE = "<script>alert('here')</script> & <img src=x onerror=alert(1)>"


class LettersOnly:
    """Tokenizer whose ids are letters."""

    def decode_batch(self, ids: list[list[int]]) -> list[str]:
        return ["".join(chr(ord("a") + each) for each in row) for row in ids]


def tokenizer() -> Tokenizer:
    return LettersOnly()  # type: ignore[return-value]


def source(*texts: str) -> FlatSource:
    ids = np.array([ord(letter) - ord("a") for text in texts for letter in text])
    return FlatSource(ids, np.array([len(text) for text in texts]), {}, {}, max_length=9)


def analysis_of(examination: Examination, num_examples: int = 20, texts: tuple[str, ...] = ("abc",)) -> dict:
    split = ExaminedSplit(source(*texts), "accuracy", {"loss": 0.5, "accuracy": 0.75}, [], examination)
    return split_analysis(split, {"weights": "step 3"}, tokenizer(), num_examples)


def labelled(labels: list[str], num_rows: int = 200) -> Examination:
    """Returns rows whose expected label is mostly, but not always, predicted."""
    rows = []
    for row in range(num_rows):
        expected = labels[row % len(labels)]
        predicted = labels[(row + (row % 3 == 0)) % len(labels)]
        rows.append(
            ExaminedRow(
                length=3 + row % 9,
                loss=0.01 * row,
                score=float(expected == predicted),
                confidence=0.5 + 0.002 * row,
                expected=expected,
                predicted=predicted,
                text=f"text {row}",
            )
        )
    return Examination(rows, "accuracy", count_confusions([(row.expected, row.predicted) for row in rows], labels))
