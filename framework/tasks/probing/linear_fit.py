"""Linear models on frozen features, in float64 by full-batch gradient steps: the same on every rank, from any start.

The objectives are convex, so that how they are minimised does not matter: by L-BFGS, which takes gradients of the whole
data and nothing else. They are those of scikit-learn: `LogisticRegression(C=1 / l2)` and `Ridge(alpha=l2)`; but two
labels have two rows of weights here, whose penalty is that of one row with `C=2 / l2`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-6
"""Of the gradient's largest entry, for the mean over rows."""

Losses = Callable[[Tensor, Tensor], Tensor]


def softmax_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy summed over rows: (rows, labels) float64 with (rows,) int64; IGNORE_INDEX does not count."""
    return functional.cross_entropy(scores, labels, reduction="sum")


def sigmoid_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropies summed: (rows, labels) float64 with (rows, labels) of 0 and 1."""
    return functional.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="sum")


def squared_loss(scores: Tensor, values: Tensor) -> Tensor:
    """Half of the squared differences, summed: (rows, 1) float64 with (rows,)."""
    return 0.5 * (scores[:, 0] - values.to(scores.dtype)).square().sum()


class LinearFit:
    """Scores of features: standardised by the rows it was fitted on, then weights and a bias.

    Args:
        features: (rows, hidden) of the training rows.
        targets: What `losses` compares scores with, one a row.
        num_scores: Scores of a row.
        losses: Summed over rows.
        l2: Half of it times the squared weights, biases left out, is added to the sum of the losses.

    Attributes:
        weight: (scores, hidden) float64, for standardised features.
        bias: (scores,) float64.
    """

    def __init__(self, features: Tensor, targets: Tensor, num_scores: int, losses: Losses, l2: float) -> None:
        features = features.double()
        self._mean = features.mean(dim=0)
        spread = features.std(dim=0, correction=0)
        self._scale = torch.where(spread > 0, spread, 1.0)
        inputs = self._standardised(features)
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
        return functional.linear(self._standardised(features.double()), self.weight, self.bias)

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._scale
