"""Metrics of predicted and true numbers that need all pairs at once.

The pairs are stored, two numbers per target, and gathered over ranks when the value is computed.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from framework.metrics.correlation import average_ranks, correlation


class PairedMetric(Metric):
    """Base of metrics that store all pairs."""

    full_state_update = False
    higher_is_better = True
    predictions: list[Tensor]
    references: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("references", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Stores the pairs of one micro-batch.

        Args:
            predictions: (targets,).
            references: (targets,), NaN for filler.
        """
        self.predictions.append(predictions.detach().float())
        self.references.append(references.float())

    def compute(self) -> Tensor:
        """Returns the value in float64; NaN if it is undefined."""
        if not len(self.predictions):
            return torch.tensor(torch.nan, dtype=torch.float64)
        predictions, references = dim_zero_cat(self.predictions), dim_zero_cat(self.references)
        real = ~references.isnan()
        return self.value(predictions[real].double(), references[real].double())

    def value(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Returns the value for all pairs, (targets,) float64 each."""
        raise NotImplementedError


class Pearson(PairedMetric):
    """Pearson's correlation, undefined if either variable is constant."""

    def value(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Returns the correlation in [-1, 1]."""
        return correlation(predictions, references)


class Spearman(PairedMetric):
    """Spearman's correlation: Pearson's correlation of the ranks. Equal values share their mean rank."""

    def value(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Returns the correlation in [-1, 1]."""
        return correlation(average_ranks(predictions), average_ranks(references))


class Auroc(PairedMetric):
    """Area under the curve of true over false positive rates; references are 1 and 0.

    It is the share of pairs of a positive and a negative in which the positive has the larger prediction. Equal
    predictions count half (Hanley, McNeil 1982). It is undefined without positives or without negatives.
    """

    def value(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Returns the area in [0, 1]."""
        positive = references == 1
        num_positive, num_negative = positive.sum(), (~positive).sum()
        above = average_ranks(predictions)[positive].sum() - num_positive * (num_positive + 1) / 2
        return above / (num_positive * num_negative)


class MeanSquaredError(PairedMetric):
    """Mean of squared differences."""

    higher_is_better = False

    def value(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Returns the error in the squared unit of the references."""
        return (predictions - references).square().mean()
