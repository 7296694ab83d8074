"""Error-analysis data that a task returns for a split: rows, confusions, probabilities, numbers.

The tables, curves and pictures built from it are in `framework.tracking.analysis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from framework.data.planning.plan import SequenceSource
    from framework.data.reading.images import PictureFile


@dataclass(frozen=True)
class ItemResults:
    """Model results for the items of a split, in the order of the items.

    Attributes:
        decoded: Results of `Task.decode`, one per item.
        losses: (items,) float64, `Task.sequence_losses` summed over the sequences of each item. None if the task has no
            losses for single sequences.
        lengths: (items,) int64, number of tokens of each item, special tokens included.
    """

    decoded: Sequence[Any]
    losses: np.ndarray | None
    lengths: np.ndarray

    def loss(self, index: int) -> float | None:
        """Returns the loss of one item, or None if the task has none."""
        return None if self.losses is None else float(self.losses[index])


@dataclass(frozen=True, slots=True)
class ExaminedRow:
    """One row in human-readable form.

    Attributes:
        length: Number of tokens, special tokens included.
        loss: Loss of the row. None if the task has no losses for single rows.
        score: Score in [0, 1]; 1 means fully correct. None if the row is not scored, or if the task has no such score.
        confidence: Probability that the model assigns to its prediction. None if it assigns none.
        expected: Expected result, from the data.
        predicted: Prediction of the model.
        text: Input text. None: the report shows the tokens of the item with the same index as the row.
        location: File and row of the input. Empty if unknown.
    """

    length: int
    loss: float | None = None
    score: float | None = None
    confidence: float | None = None
    expected: str = ""
    predicted: str = ""
    text: str | None = None
    location: str = ""


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix.

    Attributes:
        labels: Labels in the order of the rows and columns.
        counts: (labels, labels) int64; the row is the expected label, the column the predicted one.
    """

    labels: Sequence[str]
    counts: np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """Predicted probabilities and the correctness of their predictions.

    Attributes:
        of: Plural noun for the predictions that have the probabilities, for example "predicted labels".
        probabilities: (outcomes,) in [0, 1].
        is_correct: (outcomes,) bool; True means that the prediction was correct.
    """

    of: str
    probabilities: np.ndarray
    is_correct: np.ndarray


@dataclass(frozen=True)
class Gallery:
    """Table with pictures.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: Cells of each row: a text or a picture.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | PictureFile]]


@dataclass(frozen=True)
class Examination:
    """Complete error-analysis data of a split.

    Attributes:
        rows: Rows of the split, in order.
        score_name: Name of the mean of the row scores, for example "accuracy".
        confusion: Confusion matrix. None unless each row, or each part of a row, has exactly one class.
        outcomes: Predicted probabilities. None if the task supplies none here.
        numbers: (rows, 2) float64, expected and predicted number. None if the task predicts no numbers.
        galleries: Tables with pictures, for tasks that read pictures.
    """

    rows: Sequence[ExaminedRow]
    score_name: str = "score"
    confusion: Confusion | None = None
    outcomes: Outcomes | None = None
    numbers: np.ndarray | None = None
    galleries: Sequence[Gallery] = ()


@dataclass(frozen=True)
class ExaminedSplit:
    """Evaluation results of a split, with its error-analysis data.

    Attributes:
        source: Sequences of the split.
        best_metric: Metric that ranks the checkpoints of the task.
        metrics: Loss, loss terms and metrics by name.
        classes: Result of `Task.class_table`.
        examination: Result of `Task.examine`.
    """

    source: SequenceSource
    best_metric: str
    metrics: Mapping[str, float]
    classes: Sequence[Mapping[str, Any]]
    examination: Examination


def count_confusions(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> Confusion:
    """Counts (expected, predicted) pairs. Pairs with a label that is not in `labels` are ignored."""
    index_of = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for expected, predicted in pairs:
        if expected in index_of and predicted in index_of:
            counts[index_of[expected], index_of[predicted]] += 1
    return Confusion(labels, counts)


def outcomes_of_rows(rows: Sequence[ExaminedRow], of: str) -> Outcomes:
    """Collects the rows that have a confidence and a score. A row counts as correct if its score is 1.

    Args:
        rows: Rows of the split.
        of: Plural noun for the predictions, see `Outcomes`.
    """
    known = [(row.confidence, row.score == 1) for row in rows if row.confidence is not None and row.score is not None]
    return Outcomes(
        of,
        np.array([confidence for confidence, _ in known], dtype=np.float64),
        np.array([is_correct for _, is_correct in known], dtype=bool),
    )


def default_examination(items: ItemResults, predictions: Sequence[Mapping[str, Any]]) -> Examination:
    """Builds the examination that every task supports: lengths, losses, and the texts and numbers in predictions.

    Args:
        items: Results for the items of the split.
        predictions: Result of `Task.assemble`. Ignored unless it has exactly one prediction per item.
    """
    predicted = [""] * len(items.decoded)
    if len(predictions) == len(predicted):
        predicted = [
            ", ".join(f"{name}: {value}" for name, value in each.items() if isinstance(value, str | int | float))
            for each in predictions
        ]
    return Examination(
        [
            ExaminedRow(int(length), items.loss(index), predicted=text)
            for index, (length, text) in enumerate(zip(items.lengths, predicted, strict=True))
        ]
    )
