"""A number for each sequence, as the similarity of a pair."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from framework.batch import PackedBatch
from framework.data.examples.answers import Answer, number
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.metrics.paired import MeanSquaredError, Pearson, Spearman
from framework.tasks.examination import Examination, ExaminedRow, FoundItems
from framework.tasks.sequence_classification.problem import Problem, text_of


class Regression(Problem):
    """One score, in the unit of the labels."""

    best_metric = "spearman"

    def __init__(self) -> None:
        self.answers = number()

    @property
    def num_scores(self) -> int:
        """One."""
        return 1

    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """`labels` (sequences,) floats, NaN where not known."""
        values = np.array([np.nan if answer is None else answer for answer in answers], dtype=np.float32)
        return {"labels": FlatTarget(values, "sequences")}

    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """1 where the number is known."""
        return np.array([answer is not None for answer in answers], dtype=np.float64)

    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """The squared difference."""
        references = _references(batch)
        differences = logits[:, 0].float() - references.nan_to_num(0.0)
        return torch.where(references.isnan(), 0.0, differences.square())

    def build_metrics(self) -> dict[str, Metric]:
        """Pearson's and Spearman's correlation and the mean squared error."""
        return {"pearson": Pearson(), "spearman": Spearman(), "mse": MeanSquaredError()}

    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for metric in metrics.values():
            metric.update(logits[:, 0], _references(batch))

    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """The score."""
        return [{"score": score} for score in logits[:, 0].float().cpu().tolist()]

    def examine(self, records: Sequence[LabelledText], found: FoundItems) -> Examination:
        """Both numbers of each row; the loss is their squared difference."""
        numbers = np.array([[record.label, told["score"]] for record, told in zip(records, found.decoded, strict=True)])
        rows = [
            ExaminedRow(
                length=int(found.lengths[place]),
                loss=found.loss(place),
                expected=f"{expected:g}",
                predicted=f"{predicted:.4g}",
                text=text_of(record),
                location=record.location,
            )
            for place, (record, (expected, predicted)) in enumerate(zip(records, numbers.tolist(), strict=True))
        ]
        return Examination(rows, numbers=numbers.astype(np.float64))


def _references(batch: PackedBatch) -> Tensor:
    """(sequences,) fp32, NaN for dummies, whose filler is a number that a row might have."""
    values = batch.targets["labels"].clone()
    values[batch.num_sequences :] = torch.nan
    return values
