"""Metrics for several labels per target. They are exact over ranks: their states are integer counts that are summed."""

import torch
from torch import Tensor
from torchmetrics import Metric

from framework.batch import IGNORE_INDEX
from framework.metrics.classification import Accuracy


class LabelCounts(Metric):
    """Base of metrics that are computed from the outcomes of each label.

    Args:
        num_labels: Number of labels.
        threshold: Probability above which a label is predicted.

    Attributes:
        outcomes: (labels, 3) int64 true positives, false positives and false negatives over all ranks; set by
            `compute`.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, num_labels: int, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold
        self.outcomes = torch.zeros(num_labels, 3, dtype=torch.int64)
        self.add_state("counts", torch.zeros(num_labels, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts one micro-batch.

        Args:
            logits: (sequences, labels).
            labels: (sequences, labels) int64 0 or 1, IGNORE_INDEX for filler.
        """
        predicted = logits.float().sigmoid() > self.threshold
        outcomes = (predicted & (labels == 1), predicted & (labels == 0), ~predicted & (labels == 1))
        self.counts += torch.stack([outcome.sum(0) for outcome in outcomes], dim=1)

    def compute(self) -> Tensor:
        """Returns the value, in [0, 1]."""
        self.outcomes = self.counts.clone()
        return self.value(self.outcomes)

    def value(self, outcomes: Tensor) -> Tensor:
        """Returns the value for outcomes like `outcomes`."""
        return f1(outcomes.sum(0))


class MicroF1(LabelCounts):
    """F1 = 2 TP / (2 TP + FP + FN) of the outcomes of all labels together."""


class LabelMacroF1(LabelCounts):
    """Mean F1 over all labels; a label that is neither present nor predicted has F1 0."""

    def value(self, outcomes: Tensor) -> Tensor:
        """Returns macro F1 in [0, 1]."""
        return f1(outcomes).mean()


class ExactMatch(Accuracy):
    """Share of sequences with all labels correct.

    Args:
        threshold: Probability above which a label is predicted.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts one micro-batch; see `LabelCounts` for the arguments."""
        right = ((logits.float().sigmoid() > self.threshold).to(labels.dtype) == labels).all(1)
        self.num_correct += right.sum()
        self.num_targets += (labels[:, 0] != IGNORE_INDEX).sum()


def f1(outcomes: Tensor) -> Tensor:
    """Returns F1 (...) of (..., 3) true positives, false positives and false negatives; 0 if all are 0."""
    true, false_positive, false_negative = outcomes.unbind(-1)
    return 2 * true / (2 * true + false_positive + false_negative).clamp(min=1)
