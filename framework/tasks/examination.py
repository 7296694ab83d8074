"""What a task tells of a split so that people can look at its errors: rows, confusions, probabilities, numbers.

What is made of it (tables, curves, pictures) is in `framework.tracking.analysis`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.planning.plan import SequenceSource


@dataclass(frozen=True)
class FoundItems:
    """What a model found for the items of a split, in their order.

    Attributes:
        decoded: Of `Task.decode`, one for each.
        losses: (items,) float64, `Task.sequence_losses` summed over the sequences of each; None where there are none.
        lengths: (items,) int64 tokens of each, special tokens included.
    """

    decoded: Sequence[Any]
    losses: np.ndarray | None
    lengths: np.ndarray

    def loss(self, place: int) -> float | None:
        """Loss of one item; None where the task has none."""
        return None if self.losses is None else float(self.losses[place])


@dataclass(frozen=True, slots=True)
class ExaminedRow:
    """One row as a person looks at it.

    Attributes:
        length: Tokens, special tokens included.
        loss: None where the task has none for single rows.
        score: In [0, 1], 1 where all is right; None where nothing is asked, or no such score makes sense.
        confidence: Probability that the model gives to what it predicts; None where it gives none.
        expected: What the data say.
        predicted: What the model says.
        text: What is asked; None: the tokens of the item at the row's place are shown.
        place: File and row; empty where it is not known.
    """

    length: int
    loss: float | None = None
    score: float | None = None
    confidence: float | None = None
    expected: str = ""
    predicted: str = ""
    text: str | None = None
    place: str = ""


@dataclass(frozen=True)
class Confusion:
    """What was taken for what.

    Attributes:
        labels: In the order of the matrix.
        counts: (labels, labels) int64, expected label first.
    """

    labels: Sequence[str]
    counts: np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """Probabilities that the model gave, and what came true.

    Attributes:
        of: What the probabilities are of, in words: "predicted labels".
        probabilities: (outcomes,) in [0, 1].
        came_true: (outcomes,) bool.
    """

    of: str
    probabilities: np.ndarray
    came_true: np.ndarray


@dataclass(frozen=True)
class Examination:
    """Everything that a task tells of a split.

    Attributes:
        rows: Of the split, in their order.
        score_name: What the mean of the rows' scores is: "accuracy".
        confusion: None where rows or their parts do not have one class each.
        outcomes: None where no probabilities are given.
        numbers: (rows, 2) float64, expected and predicted; None where no numbers are predicted.
    """

    rows: Sequence[ExaminedRow]
    score_name: str = "score"
    confusion: Confusion | None = None
    outcomes: Outcomes | None = None
    numbers: np.ndarray | None = None


@dataclass(frozen=True)
class ExaminedSplit:
    """A split that was evaluated and examined.

    Attributes:
        source: The split.
        best_metric: By which checkpoints of the task are compared.
        metrics: Loss, its terms and metrics by name.
        classes: Of `Task.class_table`.
        examination: Of `Task.examine`.
    """

    source: SequenceSource
    best_metric: str
    metrics: Mapping[str, float]
    classes: Sequence[Mapping[str, Any]]
    examination: Examination


def count_confusions(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> Confusion:
    """Counts (expected, predicted) pairs; those with a label that is not among `labels` are left out."""
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for expected, predicted in pairs:
        if expected in place and predicted in place:
            counts[place[expected], place[predicted]] += 1
    return Confusion(labels, counts)


def outcomes_of_rows(rows: Sequence[ExaminedRow], of: str) -> Outcomes:
    """The confidences of all rows that have one, and whether their score is 1."""
    known = [(row.confidence, row.score == 1) for row in rows if row.confidence is not None and row.score is not None]
    return Outcomes(
        of,
        np.array([confidence for confidence, _ in known], dtype=np.float64),
        np.array([is_right for _, is_right in known], dtype=bool),
    )


def plain_examination(found: FoundItems, told: Sequence[Mapping[str, Any]]) -> Examination:
    """What can be said without knowing the task: lengths and losses, and of each prediction the texts and numbers.

    Args:
        found: Of the split.
        told: Of `Task.assemble`; shown where it has one for each item.
    """
    predicted = [""] * len(found.decoded)
    if len(told) == len(predicted):
        predicted = [
            ", ".join(f"{name}: {value}" for name, value in each.items() if isinstance(value, str | int | float))
            for each in told
        ]
    return Examination(
        [
            ExaminedRow(int(length), found.loss(place), predicted=shown)
            for place, (length, shown) in enumerate(zip(found.lengths, predicted, strict=True))
        ]
    )
