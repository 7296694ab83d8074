"""Linear models on frozen features, fitted in float64 on the full batch, with the same result on every rank.

The objectives are convex, so the result does not depend on the optimizer. L-BFGS needs only gradients of the full data.
The objectives are those of scikit-learn: `LogisticRegression(C=1 / l2)` and `Ridge(alpha=l2)`. One difference: two
labels have two rows of weights here, whose penalty equals that of one row with `C=2 / l2`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-6
"""Tolerance of the gradient's largest entry, for the mean over rows."""

Losses = Callable[[Tensor, Tensor], Tensor]


def softmax_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sums the cross-entropy over rows: (rows, labels) float64 with (rows,) int64; IGNORE_INDEX does not count."""
    return functional.cross_entropy(scores, labels, reduction="sum")


def sigmoid_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sums the binary cross-entropy over rows and labels: (rows, labels) float64 with (rows, labels) of 0 and 1."""
    return functional.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="sum")


def squared_loss(scores: Tensor, values: Tensor) -> Tensor:
    """Sums half of the squared differences over rows: (rows, 1) float64 with (rows,)."""
    return 0.5 * (scores[:, 0] - values.to(scores.dtype)).square().sum()


class LinearFit:
    """A linear layer on features that are standardized with the statistics of the training rows.

    Args:
        features: (rows, hidden) features of the training rows.
        targets: Target of each row, as `losses` expects it.
        num_scores: Number of scores of a row.
        losses: Function of scores and targets that returns the loss summed over rows.
        l2: Weight of the penalty; `l2 / 2` times the squared weights, without biases, is added to the sum of losses.

    Attributes:
        weight: (scores, hidden) float64, for standardized features.
        bias: (scores,) float64.
    """

    def __init__(self, features: Tensor, targets: Tensor, num_scores: int, losses: Losses, l2: float) -> None:
        features = features.double()
        self._mean = features.mean(dim=0)
        spread = features.std(dim=0, correction=0)
        self._scale = torch.where(spread > 0, spread, 1.0)
        inputs = self._standardized(features)
        self.weight = torch.zeros(num_scores, features.shape[1], dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros(num_scores, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=_TOLERANCE,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            scores = functional.linear(inputs, self.weight, self.bias)
            objective = (losses(scores, targets) + 0.5 * l2 * self.weight.square().sum()) / len(inputs)
            objective.backward()
            return objective

        with torch.enable_grad():
            optimizer.step(evaluate)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def scores(self, features: Tensor) -> Tensor:
        """Maps (rows, hidden) to (rows, scores) float64."""
        return functional.linear(self._standardized(features.double()), self.weight, self.bias)

    def _standardized(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._scale
