"""Metrics for one label per target. They are exact over ranks: their states are integer counts that are summed."""

import torch
from torch import Tensor
from torchmetrics import Metric

from framework.batch import IGNORE_INDEX


class Accuracy(Metric):
    """Share of targets whose label has the largest logit; targets with IGNORE_INDEX do not count."""

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
        """Returns accuracy in [0, 1]; 0 without targets."""
        return self.num_correct / self.num_targets.clamp(min=1)


class WorstGroupAccuracy(Metric):
    """Accuracy of the group with the lowest accuracy; groups without targets do not count.

    Args:
        num_groups: Number of groups.
    """

    full_state_update = False
    higher_is_better = True
    num_correct: Tensor
    num_targets: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.add_state("num_correct", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_targets", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Counts one micro-batch.

        Args:
            logits: (targets, labels).
            labels: (targets,) int64, IGNORE_INDEX for filler.
            groups: (targets,) int64, index of the group of each target; any value for filler.
        """
        is_target = labels != IGNORE_INDEX
        cells = torch.where(is_target, groups, 0)
        self.num_correct.scatter_add_(0, cells, (is_target & (logits.argmax(-1) == labels)).to(torch.int64))
        self.num_targets.scatter_add_(0, cells, is_target.to(torch.int64))

    def compute(self) -> Tensor:
        """Returns the lowest accuracy, in [0, 1]; 0 without targets."""
        accuracies = self.num_correct / self.num_targets.clamp(min=1)
        worst = torch.where(self.num_targets > 0, accuracies, 2.0).min()
        return torch.where(self.num_targets.sum() > 0, worst, 0.0)


class ConfusionMetric(Metric):
    """Base of metrics that are computed from the confusion matrix.

    Args:
        num_labels: Number of classes.

    Attributes:
        matrix: (labels, labels) int64 counts over all ranks, indexed by true label first; set by `compute`.
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)
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
        """Returns the value; 0 without targets."""
        self.matrix = self.confusion.view(self.num_labels, self.num_labels).clone()
        return self.value(self.matrix)

    def value(self, matrix: Tensor) -> Tensor:
        """Returns the value for a confusion matrix like `matrix`."""
        raise NotImplementedError


class MacroF1(ConfusionMetric):
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that are neither label nor prediction are omitted."""

    def value(self, matrix: Tensor) -> Tensor:
        """Returns macro F1 in [0, 1]."""
        ends = matrix.sum(0) + matrix.sum(1)
        scores = 2 * matrix.diagonal() / ends.clamp(min=1)
        return scores.sum() / (ends > 0).sum().clamp(min=1)


class PositiveF1(ConfusionMetric):
    """F1 = 2 TP / (2 TP + FP + FN) of the second of two classes, as for MRPC and QQP in GLUE; 0 if it never occurs."""

    def __init__(self) -> None:
        super().__init__(num_labels=2)

    def value(self, matrix: Tensor) -> Tensor:
        """Returns F1 in [0, 1]."""
        return 2 * matrix[1, 1] / (matrix[1].sum() + matrix[:, 1].sum()).clamp(min=1)


class Matthews(ConfusionMetric):
    """Matthews' correlation for any number of classes: R_K of Gorodkin 2004 (Comput. Biol. Chem. 28, eq. 8).

    With two classes it is Matthews' phi. It is 0 if all labels, or all predictions, are the same class.
    """

    def value(self, matrix: Tensor) -> Tensor:
        """Returns the correlation in [-1, 1]."""
        counts = matrix.double()
        total, present, predicted = counts.sum(), counts.sum(1), counts.sum(0)
        covariance = counts.trace() * total - present.dot(predicted)
        spread = (total**2 - present.dot(present)) * (total**2 - predicted.dot(predicted))
        return torch.where(spread > 0, covariance / spread.clamp(min=1.0).sqrt(), 0.0)
