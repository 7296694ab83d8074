"""Loss terms shared by all kinds of loss: each is a global sum divided by a global count.

The other modules of `passes` compute the sums, with one or several passes over each micro-batch or two over the step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from framework.batch import PackedBatch


class SumCountObjective:
    """Weighted sum of terms; each is the sum over all targets of the step / their count, or zero if the count is zero.

    Sums and counts are communicated as (terms,) float64 tensors, so that the order in which micro-batches and ranks are
    added does not affect the fp32 result.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def counts(self, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64 counts of the terms in one micro-batch, on the host."""
        return torch.tensor([batch.counts[term] for term in self.weights], dtype=torch.float64)

    def stack(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Stacks the sums of one micro-batch to a detached (terms,) float64 tensor."""
        return torch.stack([sums[term].detach().double() for term in self.weights])

    def loss(self, sums: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """Returns the contribution of one micro-batch to the loss of the step.

        Args:
            sums: Sum of each term over the micro-batch's targets: fp32 scalars.
            counts: (terms,) float64, counts of the whole step over all ranks.

        Returns:
            fp32 scalar; its sum over the micro-batches of all ranks is the loss of the step.
        """
        scales = (self._weights_like(counts) / _safe(counts)).float()
        return torch.stack([sums[term].float() for term in self.weights]).mul(scales).sum()

    def values(self, sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """Returns the loss and its terms.

        Args:
            sums: (terms,) float64 over all ranks.
            counts: (terms,) float64 over all ranks.

        Returns:
            float64 scalars: `loss`, and `TERM_loss` for each term if there are several.
        """
        means = sums / _safe(counts)
        named = {"loss": (means * self._weights_like(means)).sum()}
        if len(self.weights) > 1:
            named.update({f"{term}_loss": mean for term, mean in zip(self.weights, means.unbind(), strict=True)})
        return named

    def _weights_like(self, tensor: Tensor) -> Tensor | float:
        """Returns the weights of the terms; the number 1 if each has this weight, which changes no bit of a result."""
        if all(weight == 1.0 for weight in self.weights.values()):
            return 1.0
        # Filled on the device. A tensor copied from the host could not be part of a captured step.
        return torch.stack([tensor.new_full((), weight) for weight in self.weights.values()])


def _safe(counts: Tensor) -> Tensor:
    return torch.where(counts > 0, counts, 1.0)
