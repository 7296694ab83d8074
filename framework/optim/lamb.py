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

    Holds the steps of all parameters for a moment: as much memory as this process's part of the weights.

    Args:
        groups: With `params`, `lr`, `betas`, `eps`, `weight_decay` and `decayed`, which says that the trust ratio
            applies (a decayed group may have a decay of 0).
        state: Of `framework.optim.adamw.initial_state`.
    """
    members = advance(groups, state)
    if not members:
        return
    changes = [moments.direction().add_(moments.weight, alpha=moments.group["weight_decay"]) for moments in members]
    squares = torch.stack(
        [
            torch.stack([sum_of_squares(moments.weight) for moments in members]),
            torch.stack([sum_of_squares(change) for change in changes]),
        ]
    )
    weight_norms, change_norms = sum_over_shards(squares, [moments.parameter for moments in members]).sqrt()
    known = (weight_norms > 0.0) & (change_norms > 0.0)
    ratios = torch.where(known, weight_norms / change_norms, 1.0).float().unbind()
    for moments, change, ratio in zip(members, changes, ratios, strict=True):
        rate = moments.group["lr"]
        moments.weight.sub_(change.mul_(rate * ratio if moments.group["decayed"] else rate))
