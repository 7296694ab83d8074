"""StableAdamW: AdamW with a lower rate for tensors whose second moment lags behind the gradient.

Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models" (arXiv:2304.13013),
algorithm 2: each tensor's learning rate is divided by max(1, RMS), where RMS is the root of the mean of squared
gradient over second moment (Adafactor's update clipping, Shazeer, Stern 2018, section 6). As in the paper, the weight
decay of the step is divided too, and within the RMS the second moment is at least eps squared. The moments are
unbiased: Adam's correction is equivalent to the paper's betas that change with the step. There are no departures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.optim.moments import Block, advance
from framework.optim.shards import sum_of_squares, sum_over_shards


def _square_sums(block: Block) -> list[Tensor]:
    """Returns the sum of squared gradient over second moment of each parameter of the block, as fp64 scalars."""
    roots = list(torch._foreach_div(block.exp_avg_sqs, block.second_weights))
    torch._foreach_sqrt_(roots)
    torch._foreach_clamp_min_(roots, block.group["eps"])
    return [sum_of_squares(ratio) for ratio in torch._foreach_div(block.gradients, roots)]


def update(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """Updates all groups together, with one all-reduce if parameters are sharded. Collective: all ranks must call.

    Args:
        groups: Parameter groups with `params`, `lr`, `betas`, `eps` and `weight_decay`.
        state: State from `framework.optim.adamw.initial_state`.
    """
    parameters, blocks = advance(groups, state)
    if not parameters:
        return
    sums: list[list[Tensor]] = [[] for _ in parameters]
    for block in blocks:
        block.take_gradients()
        for index, square_sum in zip(block.indices, _square_sums(block), strict=True):
            sums[index].append(square_sum)
    means = [torch.stack(own).sum() / parameter.numel() for own, parameter in zip(sums, parameters, strict=True)]
    mean_squares = sum_over_shards(torch.stack(means).unsqueeze(0), parameters).squeeze(0)
    scales = mean_squares.sqrt().clamp(min=1.0).reciprocal().float().unbind()
    for block in blocks:
        block.move([block.group["lr"] * scales[index] for index in block.indices])
