"""The protocol of a problem: what is asked of each sequence, whatever the head and the data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torchmetrics import Metric

from framework.batch import PackedBatch
from framework.data.examples.answers import Answer, AnswerKind
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.tasks.examination import Examination, FoundItems


class Problem(ABC):
    """How labels are read, what the loss is, what is measured, and what a prediction says.

    The loss of a batch is the sum of `losses` divided by the sum of `counts`.

    Attributes:
        answers: How the cells of the label column are read.
        best_metric: By which checkpoints are compared unless the config names another one.
        labels: The label set in the order of scores, empty where there is none; known after `learn` or `restore`.
    """

    answers: AnswerKind
    best_metric: str
    labels: tuple[str, ...] = ()

    @property
    def num_scores(self) -> int:
        """Scores of a sequence."""
        return len(self.labels)

    def learn(self, labels: Sequence[str], answers: Sequence[Answer]) -> None:
        """Takes the label set, and what else is wanted of the training rows.

        Args:
            labels: In the order of scores.
            answers: Of the training rows.

        Raises:
            ConfigError: A setting names a label that is not in the set.
            DataError: The rows lack something that a setting needs.
        """
        del answers
        self.labels = tuple(labels)

    def side_config(self) -> dict[str, Any]:
        """What was learnt, for `restore`."""
        return {"labels": list(self.labels)}

    def restore(self, side: Mapping[str, Any]) -> None:
        """Takes back what `side_config` gave."""
        self.labels = tuple(str(label) for label in side["labels"])

    @abstractmethod
    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """Targets of sequences; None: the answer is not known, and nothing is asked of the sequence."""

    @abstractmethod
    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """(sequences,) weight of each in the denominator of the loss; 0 where the answer is not known."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Loss of each sequence, to be summed: (sequences, scores) to (sequences,) fp32, 0 where nothing is asked."""

    @abstractmethod
    def build_metrics(self) -> dict[str, Metric]:
        """Fresh metrics by name."""

    @abstractmethod
    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Feeds one micro-batch into the metrics: (sequences, scores) logits."""

    @abstractmethod
    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """Predictions from (sequences, scores) logits, one for each sequence, as values for JSON."""

    def class_table(self, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
        """One row a label, after the metrics were computed; empty where there are no labels."""
        del metrics
        return []

    @abstractmethod
    def examine(self, records: Sequence[LabelledText], found: FoundItems) -> Examination:
        """Each row with what was expected and what was predicted."""


def text_of(record: LabelledText) -> str:
    """What is asked, the second text of a pair below the first."""
    return record.text if record.pair is None else f"{record.text}\n{record.pair}"
