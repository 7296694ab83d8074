"""Metrics of choosing one label: exact over ranks, because their states are whole counts that are summed."""

import torch
from torch import Tensor
from torchmetrics import Metric

from framework.constants import IGNORE_INDEX


class Accuracy(Metric):
    """Share of targets whose largest logit is the label's; targets with IGNORE_INDEX do not count."""

    full_state_update = False
    higher_is_better = True
    num_correct: Tensor
    num_targets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_targets", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts one micro-batch.

        Args:
            logits: (targets, labels).
            labels: (targets,) int64, IGNORE_INDEX for filler.
        """
        self.num_correct += (logits.argmax(-1) == labels).sum()
        self.num_targets += (labels != IGNORE_INDEX).sum()

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]; 0 without targets."""
        return self.num_correct / self.num_targets.clamp(min=1)


class MacroF1(Metric):
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that are neither label nor prediction are left out.

    Args:
        num_labels: Number of classes.
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.add_state("confusion", torch.zeros(num_labels * num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts one micro-batch.

        Args:
            logits: (targets, labels).
            labels: (targets,) int64, IGNORE_INDEX for filler.
        """
        cells = labels.clamp(min=0) * self.num_labels + logits.argmax(-1)
        self.confusion.scatter_add_(0, cells, (labels != IGNORE_INDEX).to(torch.int64))

    def compute(self) -> Tensor:
        """Macro F1 in [0, 1]; 0 without targets."""
        table = self.confusion.view(self.num_labels, self.num_labels)
        true_positives = table.diagonal()
        ends = table.sum(0) + table.sum(1)
        scores = 2 * true_positives / ends.clamp(min=1)
        return scores.sum() / (ends > 0).sum().clamp(min=1)
