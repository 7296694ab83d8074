"""The loss scale of fp16 (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2), adapted as a run goes.

torch's GradScaler has the same rule, but steps the optimizer itself; here the step belongs to Lightning's wrapper,
which counts it, and whether gradients are finite is known from their norm.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from framework.errors import FrameworkError
from framework.optim.shards import local

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
SMALLEST_SCALE = 1.0
LARGEST_SCALE = 2.0**127
"""The largest power of two that fp32 holds."""

_GROWTH, _BACKOFF = 2.0, 0.5


class LossScale:
    """What losses are multiplied by before the backward pass, so that small gradients do not vanish in fp16.

    It is halved after a step whose gradients overflowed, and doubled after so many finite steps in a row.

    Attributes:
        value: Of the next backward pass.
        num_finite_steps: Since the last change.
        num_overflows: Steps of the run whose update was left out.
    """

    def __init__(self, init_scale: float = INITIAL_SCALE, growth_interval: int = GROWTH_INTERVAL) -> None:
        self.value = float(init_scale)
        self.growth_interval = growth_interval
        self.num_finite_steps = 0
        self.num_overflows = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divides the gradients by the scale, in place. No communication: call after the last reduction."""
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.value)

    def update(self, overflowed: bool, step: int) -> None:
        """Takes in whether a step's gradients overflowed; the same on all ranks.

        Args:
            overflowed: A gradient, summed over all ranks, is not finite.
            step: Counted from 1, for the message.

        Raises:
            FrameworkError: The scale would fall below 1: the gradients overflow without it too.
        """
        if overflowed:
            self.num_overflows += 1
            self.num_finite_steps = 0
            self.value *= _BACKOFF
            if self.value < SMALLEST_SCALE:
                raise FrameworkError(
                    f"Step {step}: gradients overflowed in fp16 with a loss scale of {self.value / _BACKOFF:g}, but it "
                    f"may not fall below {SMALLEST_SCALE:g} ({self.num_overflows} steps of the run overflowed); the "
                    "update was not applied. Use precision=bf16 or precision=fp32, or lower the learning rate, and "
                    "start again from the last checkpoint."
                )
            return
        self.num_finite_steps += 1
        if self.num_finite_steps == self.growth_interval:
            self.num_finite_steps = 0
            self.value = min(self.value * _GROWTH, LARGEST_SCALE)

    def metrics(self) -> dict[str, Tensor]:
        """The scale of the next step, and how many steps overflowed so far, by metric key."""
        values = {"optim/loss_scale": self.value, "optim/overflow_steps": float(self.num_overflows)}
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know; fits JSON."""
        return {
            "value": self.value,
            "num_finite_steps": self.num_finite_steps,
            "num_overflows": self.num_overflows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.value = float(state["value"])
        self.num_finite_steps = int(state["num_finite_steps"])
        self.num_overflows = int(state["num_overflows"])
