"""Any number of labels for each sequence; each label is a binary classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.answers import Answer, several_labels
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.errors import ConfigError, check_open_fraction
from framework.nn.cross_entropy import at_least_fp32
from framework.tasks.examination import Examination, ExaminedRow, ItemResults, Outcomes
from framework.tasks.sequence_classification.decode import class_scores
from framework.tasks.sequence_classification.problem import Problem, text_of

if TYPE_CHECKING:
    from torchmetrics import Metric

    from framework.metrics.multi_label import LabelCounts


class MultiLabel(Problem):
    """Problem with a sigmoid for each label.

    Args:
        label_separator: Separator of labels in a cell of the label column; an empty cell means no label.
        threshold: Probability above which a label is predicted.

    Raises:
        ConfigError: The separator is empty, or the threshold is not in (0, 1).
    """

    best_metric = "micro_f1"
    metric_modes = dict.fromkeys(("micro_f1", "macro_f1", "exact_match"), "max")

    def __init__(self, label_separator: str = "|", threshold: float = 0.5) -> None:
        if not label_separator:
            raise ConfigError(
                "task.label_separator is empty. Several labels in a cell need a separator. Set it, for example, to |."
            )
        check_open_fraction("task.threshold", threshold, "Choose, for example, 0.5.")
        self.threshold = threshold
        self.answers = several_labels(label_separator)

    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """Returns `labels` (sequences, labels): 1 if a sequence has the label, 0 if not, IGNORE_INDEX if unknown."""
        columns = {label: index for index, label in enumerate(self.labels)}
        values = np.zeros((len(answers), len(self.labels)), dtype=np.int64)
        for row, answer in enumerate(answers):
            if answer is None:
                values[row] = IGNORE_INDEX
            else:
                values[row, [columns[label] for label in answer]] = 1
        return {"labels": FlatTarget(values, "sequences")}

    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """Returns 1 for sequences whose labels are known, else 0."""
        return np.array([answer is not None for answer in answers], dtype=np.float64)

    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Returns the mean of the binary cross-entropy over labels."""
        labels = batch.targets["labels"]
        scores = at_least_fp32(logits)
        means = binary_cross_entropy_with_logits(scores, labels.clamp(min=0).to(scores), reduction="none").mean(1)
        return torch.where(labels[:, 0] != IGNORE_INDEX, means, 0.0)

    def build_metrics(self) -> dict[str, Metric]:
        """Builds micro F1, macro F1, and the fraction of sequences whose labels are all correct."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.multi_label import ExactMatch, LabelMacroF1, MicroF1

        num_labels = len(self.labels)
        return {
            "micro_f1": MicroF1(num_labels, self.threshold),
            "macro_f1": LabelMacroF1(num_labels, self.threshold),
            "exact_match": ExactMatch(self.threshold),
        }

    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for metric in metrics.values():
            metric.update(logits, batch.targets["labels"])

    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """Returns the labels above the threshold, in the order of the label set, and all probabilities."""
        rows = [dict(zip(self.labels, row, strict=True)) for row in logits.float().sigmoid().cpu().tolist()]
        return [
            {"labels": [label for label, value in row.items() if value > self.threshold], "probabilities": row}
            for row in rows
        ]

    def predicted_labels(self, prediction: Mapping[str, Any]) -> list[str]:
        """Returns the predicted labels; the most probable one if none is predicted."""
        probabilities = prediction["probabilities"]
        return prediction["labels"] or [max(probabilities, key=probabilities.__getitem__)]

    def class_table(self, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and number of sequences of each label."""
        right, false_positives, missed = cast("LabelCounts", metrics["micro_f1"]).outcomes.unbind(1)
        return class_scores(right, right + missed, right + false_positives, self.labels)

    def examine(self, records: Sequence[LabelledText], results: ItemResults) -> Examination:
        """Builds the error analysis, in which the score of a row is the fraction of its labels that are correct.

        Its outcomes are the probabilities of all labels of all rows.
        """
        rows, probabilities, is_correct = [], [], []
        for index, (record, prediction) in enumerate(zip(records, results.decoded, strict=True)):
            present, predicted = set(_labels(record)), set(prediction["labels"])
            probabilities += [prediction["probabilities"][label] for label in self.labels]
            is_correct += [label in present for label in self.labels]
            rows.append(
                ExaminedRow(
                    length=int(results.lengths[index]),
                    loss=results.loss(index),
                    score=1 - len(present ^ predicted) / len(self.labels),
                    expected=", ".join(label for label in self.labels if label in present),
                    predicted=", ".join(prediction["labels"]),
                    text=text_of(record),
                    location=record.location,
                )
            )
        outcomes = Outcomes("labels of all rows", np.array(probabilities), np.array(is_correct, dtype=bool))
        return Examination(rows, "fraction of correct labels", outcomes=outcomes)


def _labels(record: LabelledText) -> Sequence[str]:
    assert isinstance(record.label, tuple)
    return record.label
