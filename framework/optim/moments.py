"""The two moments of Adam (Kingma, Ba 2015, algorithm 1), for updates that also need sums over a whole tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framework.optim.shards import local


@dataclass(frozen=True)
class Moments:
    """A parameter that has a gradient, and its moments after this step's gradient; this process's part of each.

    Attributes:
        group: The settings of its parameter group.
        parameter: Itself, whole or sharded.
        weight: Its values.
        gradient: Of this step.
        exp_avg: Decaying mean of the gradients, from zero.
        exp_avg_sq: Decaying mean of their squares, from zero.
        first_weight: What the weights in `exp_avg` add up to, a scalar in (0, 1].
        second_weight: What those in `exp_avg_sq` add up to.
    """

    group: Mapping[str, Any]
    parameter: Tensor
    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    first_weight: Tensor
    second_weight: Tensor

    def first(self) -> Tensor:
        """The mean of the gradients, without the bias towards the start at zero."""
        return self.exp_avg / self.first_weight

    def second(self) -> Tensor:
        """The mean of the squares, without the bias."""
        return self.exp_avg_sq / self.second_weight

    def direction(self) -> Tensor:
        """Adam's: the first moment over the root of the second; a tensor of its own."""
        return self.first().div_(self.second().sqrt_().add_(self.group["eps"]))


def advance(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> list[Moments]:
    """Counts the step and takes the gradients in, for the parameters that have one.

    Args:
        groups: With `params`, `betas` and `eps`.
        state: Of `framework.optim.adamw.initial_state`.
    """
    return [moments for group in groups for moments in _advance_group(group, state)]


def _advance_group(group: Mapping[str, Any], state: Mapping[Tensor, dict[str, Tensor]]) -> list[Moments]:
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not parameters:
        return []
    beta1, beta2 = group["betas"]
    gradients = [local(parameter.grad) for parameter in parameters]
    exp_avgs = [local(state[parameter]["exp_avg"]) for parameter in parameters]
    exp_avg_sqs = [local(state[parameter]["exp_avg_sq"]) for parameter in parameters]
    steps = [state[parameter]["step"] for parameter in parameters]
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(exp_avgs, gradients, 1.0 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, 1.0 - beta2)
    # In fp64: 1 - 0.999 loses four digits in fp32. On the device, so that the host does not wait.
    step = torch.stack(steps).double()
    first_weights, second_weights = ((1.0 - beta**step).float().unbind() for beta in (beta1, beta2))
    columns = (parameters, gradients, exp_avgs, exp_avg_sqs, first_weights, second_weights)
    return [
        Moments(group, parameter, local(parameter), gradient, *means)
        for parameter, gradient, *means in zip(*columns, strict=True)
    ]
