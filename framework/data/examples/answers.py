"""How the cells of a label column are read: as one label, several labels, or a number."""

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
    """One way to read them.

    Attributes:
        read: From the text of a cell, without the spaces around it, to the answer; raises ValueError, whose message
            says what the cell must be.
        labels: The labels of an answer; a number has none.
        has_labels: Whether there is a label set.
        has_several: Whether an answer may hold several labels, or none: cells may then be empty, and lists in JSON.
        outside: Labels that rows may have although they are not in the label set.
    """

    read: Callable[[str], Answer]
    labels: Callable[[Answer], tuple[str, ...]]
    has_labels: bool = True
    has_several: bool = False
    outside: frozenset[str] = frozenset()


def one_label(outside: frozenset[str] = frozenset()) -> AnswerKind:
    """The cell is the label.

    Args:
        outside: As in AnswerKind.
    """
    return AnswerKind(read=str, labels=lambda answer: (answer,), outside=outside)


def several_labels(separator: str) -> AnswerKind:
    """A JSON list of labels, or labels with the separator between them; an empty cell has none of the labels."""
    return AnswerKind(read=lambda cell: _labels_of(cell, separator), labels=tuple, has_several=True)


def number() -> AnswerKind:
    """The cell is a number."""
    return AnswerKind(read=_number, labels=lambda _: (), has_labels=False)


def _labels_of(cell: str, separator: str) -> Hashable:
    if cell.startswith("["):
        try:
            found = parse_json(cell)
        except ValueError as error:
            raise ValueError("begins with a bracket, so it must be a JSON list of labels") from error
        if not all(map(has_text, found)):
            raise ValueError("must be a JSON list of labels, each a text or a finite number")
        labels = [str(label).strip() for label in found]
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
