"""The protocol of a problem, the kind of prediction for each sequence, independent of head and data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.examples.answers import Answer, AnswerKind
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.tasks.examination import Examination, ItemResults

if TYPE_CHECKING:
    from torchmetrics import Metric


class Problem(ABC):
    """Label format, loss, metrics and predictions of a kind of sequence classification.

    The loss of a batch is the sum of `losses` divided by the sum of `counts`.

    Attributes:
        answers: Parser of the cells of the label column.
        best_metric: Metric by which checkpoints are compared unless the config names another one.
        metric_modes: "max" or "min" for the better values of each metric, by the names of `build_metrics`.
        has_worst_group: True if predictions are right or wrong, so that groups have an accuracy (one label).
        labels: Label set in the order of scores, empty for problems without labels; known after `learn` or `restore`.
    """

    answers: AnswerKind
    best_metric: str
    metric_modes: Mapping[str, str]
    has_worst_group: bool = False
    labels: tuple[str, ...] = ()

    @property
    def num_scores(self) -> int:
        """Returns the number of scores of a sequence."""
        return len(self.labels)

    def learn(self, labels: Sequence[str], answers: Sequence[Answer]) -> None:
        """Sets the label set and learns from the training rows.

        Args:
            labels: Label names in the order of scores.
            answers: Values of the label column of the training rows.

        Raises:
            ConfigError: A setting names a label that is not in the set.
            DataError: The rows lack something that a setting needs.
        """
        self.labels = tuple(labels)

    def to_record(self) -> dict[str, Any]:
        """Returns the learned values, for `restore`."""
        return {"labels": list(self.labels)}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the values of `to_record`."""
        self.labels = tuple(str(label) for label in record["labels"])

    @property
    def explained_labels(self) -> tuple[str, ...]:
        """Returns the names of the scores in their order."""
        return self.labels

    @property
    def single_labels(self) -> tuple[str, ...]:
        """Returns the labels if each sequence has exactly one; empty for other problems."""
        return ()

    def predicted_labels(self, prediction: Mapping[str, Any]) -> list[str]:
        """Returns the names of the predicted scores, for a prediction of `decode`."""
        return [prediction["label"]]

    @abstractmethod
    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """Returns the targets of sequences; an answer of None is unknown, and its sequence is ignored."""

    @abstractmethod
    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """Returns (sequences,) weights in the denominator of the loss; 0 if the answer is unknown."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Returns the losses to sum, from (sequences, scores) to (sequences,) fp32; 0 for ignored sequences."""

    @abstractmethod
    def build_metrics(self) -> dict[str, Metric]:
        """Builds new metrics by name."""

    @abstractmethod
    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Adds one micro-batch with (sequences, scores) logits to the metrics."""

    @abstractmethod
    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """Converts (sequences, scores) logits to one prediction per sequence, as JSON values."""

    def class_table(self, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
        """Returns one row of scores per label, after the metrics were computed; empty without labels."""
        return []

    @abstractmethod
    def examine(self, records: Sequence[LabelledText], results: ItemResults) -> Examination:
        """Builds the error analysis with the expected and the predicted value of each row."""


def text_of(record: LabelledText) -> str:
    """Returns the text of a row; the second text of a pair follows on a new line."""
    return record.text if record.pair is None else f"{record.text}\n{record.pair}"
