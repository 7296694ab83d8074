"""A number for each sequence, for example the similarity of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.examples.answers import Answer, number
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.tasks.examination import Examination, ExaminedRow, ItemResults
from framework.tasks.sequence_classification.problem import Problem, text_of

if TYPE_CHECKING:
    from torchmetrics import Metric


class Regression(Problem):
    """Problem with one score per sequence, in the unit of the labels."""

    best_metric = "spearman"
    metric_modes = dict.fromkeys(("pearson", "spearman"), "max") | {"mse": "min"}

    def __init__(self) -> None:
        self.answers = number()

    @property
    def num_scores(self) -> int:
        """Returns 1."""
        return 1

    @property
    def explained_labels(self) -> tuple[str, ...]:
        """Returns the name of the only score."""
        return ("score",)

    def predicted_labels(self, prediction: Mapping[str, Any]) -> list[str]:
        """Returns the name of the only score."""
        del prediction
        return ["score"]

    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """Returns `labels` (sequences,) as floats, NaN if unknown."""
        values = np.array([np.nan if answer is None else answer for answer in answers], dtype=np.float32)
        return {"labels": FlatTarget(values, "sequences")}

    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """Returns 1 for sequences whose number is known, else 0."""
        return np.array([answer is not None for answer in answers], dtype=np.float64)

    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Returns the squared difference of each sequence."""
        references = _references(batch)
        differences = logits[:, 0].float() - references.nan_to_num(0.0)
        return torch.where(references.isnan(), 0.0, differences.square())

    def build_metrics(self) -> dict[str, Metric]:
        """Builds Pearson's and Spearman's correlation and the mean squared error."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.paired import MeanSquaredError, Pearson, Spearman

        return {"pearson": Pearson(), "spearman": Spearman(), "mse": MeanSquaredError()}

    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for metric in metrics.values():
            metric.update(logits[:, 0], _references(batch))

    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """Returns the score of each sequence."""
        return [{"score": score} for score in logits[:, 0].float().cpu().tolist()]

    def examine(self, records: Sequence[LabelledText], results: ItemResults) -> Examination:
        """Builds the error analysis with both numbers of each row; the loss is their squared difference."""
        numbers = np.array(
            [[record.label, each["score"]] for record, each in zip(records, results.decoded, strict=True)]
        )
        rows = [
            ExaminedRow(
                length=int(results.lengths[index]),
                loss=results.loss(index),
                expected=f"{expected:g}",
                predicted=f"{predicted:.4g}",
                text=text_of(record),
                location=record.location,
            )
            for index, (record, (expected, predicted)) in enumerate(zip(records, numbers.tolist(), strict=True))
        ]
        return Examination(rows, numbers=numbers.astype(np.float64))


def _references(batch: PackedBatch) -> Tensor:
    """Returns (sequences,) fp32 with NaN for dummies, because the filler of dummies is a valid number."""
    values = batch.targets["labels"].clone()
    values[batch.num_sequences :] = torch.nan
    return values
