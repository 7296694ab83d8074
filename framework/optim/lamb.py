"""LAMB: Adam's direction, and for each tensor a step as long as a part of the tensor's own norm.

You et al. 2020, "Large batch optimization for deep learning: training BERT in 76 minutes" (arXiv:1904.00962),
algorithm 2, with phi the identity and with its bias correction, which the code that the authors released lacks. As in
that code and not in the paper: the trust ratio is 1 for parameters that are not decayed, and where the weight or the
step is zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.optim.moments import advance
from framework.optim.shards import sum_of_squares, sum_over_shards


def update(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """One update of all groups together: one all-reduce where parameters are sharded. Collective: all ranks must call.

    Args:
        groups: With `params`, `lr`, `betas`, `eps`, `weight_decay` and `decayed`, which says that the trust ratio
            applies (a decayed group may have a decay of 0).
        state: Of `framework.optim.adamw.initial_state`.
    """
    parameters, blocks = advance(groups, state)
    if not parameters:
        return
    sums: list[list[Tensor]] = [[] for _ in parameters]
    for block in blocks:
        block.take_gradients()
        for place, weight, change in zip(block.places, block.weights, block.changes(), strict=True):
            sums[place].append(torch.stack([sum_of_squares(weight), sum_of_squares(change)]))
    squares = torch.stack([torch.stack(own).sum(dim=0) for own in sums], dim=1)
    weight_norms, change_norms = sum_over_shards(squares, parameters).sqrt()
    known = (weight_norms > 0.0) & (change_norms > 0.0)
    ratios = torch.where(known, weight_norms / change_norms, 1.0).float()
    unscaled = torch.ones_like(ratios).unbind()
    trusted = ratios.unbind()
    for block in blocks:
        chosen = trusted if block.group["decayed"] else unscaled
        block.move([block.group["lr"] * chosen[place] for place in block.places])
