"""LAMB: Adam's direction, scaled for each tensor by the ratio of the norms of weight and update.

You et al. 2020, "Large batch optimization for deep learning: training BERT in 76 minutes" (arXiv:1904.00962),
algorithm 2, with phi the identity and with the paper's bias correction, which the authors' released code lacks. As in
that code, unlike the paper, the trust ratio is 1 for parameters without weight decay and if weight or update is zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.optim.moments import advance
from framework.optim.shards import sum_of_squares, sum_over_shards


def update(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """Updates all groups together, with one all-reduce if parameters are sharded. Collective: all ranks must call.

    Args:
        groups: Parameter groups with `params`, `lr`, `betas`, `eps`, `weight_decay` and `decayed`. The trust ratio
            applies if `decayed` is True, even with a weight decay of 0.
        state: State from `framework.optim.adamw.initial_state`.
    """
    parameters, blocks = advance(groups, state)
    if not parameters:
        return
    sums: list[list[Tensor]] = [[] for _ in parameters]
    for block in blocks:
        block.take_gradients()
        for index, weight, change in zip(block.indices, block.weights, block.changes(), strict=True):
            sums[index].append(torch.stack([sum_of_squares(weight), sum_of_squares(change)]))
    squares = torch.stack([torch.stack(own).sum(dim=0) for own in sums], dim=1)
    weight_norms, change_norms = sum_over_shards(squares, parameters).sqrt()
    known = (weight_norms > 0.0) & (change_norms > 0.0)
    ratios = torch.where(known, weight_norms / change_norms, 1.0).float()
    unscaled = torch.ones_like(ratios).unbind()
    trusted = ratios.unbind()
    for block in blocks:
        chosen = trusted if block.group["decayed"] else unscaled
        block.move([block.group["lr"] * chosen[index] for index in block.indices])
