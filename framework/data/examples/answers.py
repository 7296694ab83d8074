"""Parses the cells of a label column as one label, several labels, or a number."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from framework.data.reading.header import plain_float
from framework.data.reading.json_rows import has_text
from framework.errors import DataError
from framework.files import parse_json

T = TypeVar("T")

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


def read_cell(location: str, column: str, cell: str, read: Callable[[str], T]) -> T:
    """Parses a cell with a function such as `AnswerKind.read`.

    Raises:
        DataError: The function rejects the cell.
    """
    try:
        return read(cell.strip())
    except ValueError as error:
        raise DataError(
            f"{location}: {column!r} is {cell.strip()!r}. It {error}. Correct or remove the row."
        ) from error


def require_text(location: str, name: str, text: str) -> str:
    """Returns the text of a column or field.

    Raises:
        DataError: The text is blank.
    """
    if not text.strip():
        raise DataError(f"{location}: {name!r} is empty. Each row needs one. Complete or remove the row.")
    return text


def parse_list(cell: str) -> list[Any] | None:
    """Returns the items of a JSON list, or None if the cell is something else."""
    try:
        value = parse_json(cell)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


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
        values = parse_list(cell)
        if values is None:
            raise ValueError("begins with a bracket, so it must be a JSON list of labels")
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
