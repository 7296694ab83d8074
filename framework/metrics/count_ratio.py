"""A share of counted things, exact over ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CountRatio(Metric):
    """Sum of one count divided by the sum of another."""

    full_state_update = False
    higher_is_better = None
    num_counted: Tensor
    num_all: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_counted", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_all", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, is_counted: Tensor, is_any: Tensor) -> None:
        """Adds one micro-batch.

        Args:
            is_counted: Bool of any shape, True for things that count.
            is_any: Bool of any shape, True for all things.
        """
        self.num_counted += is_counted.sum()
        self.num_all += is_any.sum()

    def compute(self) -> Tensor:
        """Returns the ratio; 0 without things."""
        return self.num_counted / self.num_all.clamp(min=1)
