"""StableAdamW: AdamW whose rate falls for a tensor where the second moment lags behind the gradient.

Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models" (arXiv:2304.13013),
algorithm 2: each tensor's learning rate is divided by max(1, RMS), where RMS is the root of the mean of squared
gradient over second moment (Adafactor's update clipping, Shazeer, Stern 2018, section 6). As there, the weight decay of
the step is divided too, the second moment counts as eps squared at least within the RMS, and the moments are free of
bias: here by Adam's correction, there by betas that change with the step, which is the same. No departures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.optim.moments import Moments, advance
from framework.optim.shards import sum_of_squares, sum_over_shards


def _mean_square_part(moments: Moments) -> Tensor:
    """What this process's part adds to the mean of squared gradient over second moment, fp64."""
    root = moments.second().sqrt_().clamp_(min=moments.group["eps"])
    return sum_of_squares(moments.gradient / root) / moments.parameter.numel()


def update(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """One update of all groups together: one all-reduce where parameters are sharded. Collective: all ranks must call.

    Args:
        groups: With `params`, `lr`, `betas`, `eps` and `weight_decay`.
        state: Of `framework.optim.adamw.initial_state`.
    """
    members = advance(groups, state)
    if not members:
        return
    parts = torch.stack([_mean_square_part(moments) for moments in members])
    mean_squares = sum_over_shards(parts.unsqueeze(0), [moments.parameter for moments in members]).squeeze(0)
    scales = mean_squares.sqrt().clamp(min=1.0).reciprocal().float().unbind()
    for moments, scale in zip(members, scales, strict=True):
        change = moments.direction().add_(moments.weight, alpha=moments.group["weight_decay"])
        moments.weight.sub_(change.mul_(moments.group["lr"] * scale))
