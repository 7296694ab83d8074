"""AdamW (Loshchilov, Hutter 2019) on shards: the update is element-wise, so each rank updates its own shard."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from framework.optim.shards import local

FUSED_DEVICES = ("cpu", "cuda")


def initial_state(parameter: Tensor) -> dict[str, Tensor]:
    """Returns zero moments, sharded like the parameter, and the update count (an fp32 scalar, for torch's kernels)."""
    return {
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
    }


def update(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, dict[str, Tensor]],
    hold_flag: Tensor | None = None,
    rates: Sequence[Tensor] = (),
) -> None:
    """Updates the parameters that have gradients. No communication.

    Args:
        groups: Parameter groups with `params`, `lr` and the settings of AdamW.
        state: State from `initial_state`.
        hold_flag: fp32 scalar on the device; 1 leaves parameters and state unchanged. None: 0.
        rates: Learning rate of each group as a scalar on the device; empty: `lr` of the group.
    """
    for group, rate in zip(groups, rates or [group["lr"] for group in groups], strict=True):
        _update_group(group, state, rate, hold_flag)


def _update_group(
    group: Mapping[str, Any],
    state: Mapping[Tensor, dict[str, Tensor]],
    rate: float | Tensor,
    hold_flag: Tensor | None,
) -> None:
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not parameters:
        return
    states = [state[parameter] for parameter in parameters]
    beta1, beta2 = group["betas"]
    fused = parameters[0].device.type in FUSED_DEVICES
    adamw(
        [local(parameter) for parameter in parameters],
        [local(parameter.grad) for parameter in parameters],
        [local(own["exp_avg"]) for own in states],
        [local(own["exp_avg_sq"]) for own in states],
        [],
        [own["step"] for own in states],
        foreach=None if fused else False,
        fused=fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=rate,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        found_inf=hold_flag,
    )
