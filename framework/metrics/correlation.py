"""Correlation and ranks of numbers. Imports no torchmetrics, which takes seconds."""

from torch import Tensor


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Returns Pearson's correlation of (targets,) with (targets,)."""
    x, y = x - x.mean(), y - y.mean()
    return x.dot(y) / (x.norm() * y.norm())


def average_ranks(values: Tensor) -> Tensor:
    """Returns float64 ranks from 1 of (targets,) values. Equal values share their mean rank."""
    _, indices, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[indices]
