"""Parses the cells of a label column as one label, several labels, or a number."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from framework.data.reading.header import plain_float
from framework.data.reading.json_rows import has_text
from framework.files import parse_json

Answer = Any
"""A label, a tuple of labels in ascending order, or a number; hashable."""


@dataclass(frozen=True)
class AnswerKind:
    """Parser of the cells of a label column.

    Attributes:
        read: Function that converts the stripped text of a cell to an answer. It raises ValueError with a message that
            continues the sentence "It ...", for example "must be a number".
        labels: Function that returns the labels of an answer; empty for numbers.
        has_labels: True if answers belong to a label set.
        has_several: True if an answer can have any number of labels. Cells can then be empty, and JSON lists.
        outside: Labels that rows may have although they are not in the label set.
    """

    read: Callable[[str], Answer]
    labels: Callable[[Answer], tuple[str, ...]]
    has_labels: bool = True
    has_several: bool = False
    outside: frozenset[str] = frozenset()


def one_label(outside: frozenset[str] = frozenset()) -> AnswerKind:
    """Returns the parser of cells that hold one label.

    Args:
        outside: Labels as in AnswerKind.
    """
    return AnswerKind(read=str, labels=lambda answer: (answer,), outside=outside)


def several_labels(separator: str) -> AnswerKind:
    """Returns the parser of cells that hold a JSON list of labels, or labels joined by a separator.

    An empty cell has no label.
    """
    return AnswerKind(read=lambda cell: _labels_of(cell, separator), labels=tuple, has_several=True)


def number() -> AnswerKind:
    """Returns the parser of cells that hold a finite number."""
    return AnswerKind(read=_number, labels=lambda _: (), has_labels=False)


def _labels_of(cell: str, separator: str) -> Hashable:
    if cell.startswith("["):
        try:
            values = parse_json(cell)
        except ValueError as error:
            raise ValueError("begins with a bracket, so it must be a JSON list of labels") from error
        if not all(map(has_text, values)):
            raise ValueError("must be a JSON list of labels, each a text or a finite number")
        labels = [str(label).strip() for label in values]
    else:
        labels = [label.strip() for label in cell.split(separator)] if cell else []
    if "" in labels:
        raise ValueError("must not hold an empty label")
    return tuple(sorted(set(labels)))


def _number(cell: str) -> float:
    value = plain_float(cell)
    if value is None:
        raise ValueError("must be a number")
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value
