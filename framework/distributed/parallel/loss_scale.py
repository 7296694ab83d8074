"""Dynamic loss scale of fp16 (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).

torch's GradScaler has the same rule, but steps the optimizer itself. Here Lightning's wrapper steps the optimizer and
counts the steps, and the gradient norm shows whether gradients are finite.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from framework.distributed.parallel.loss_scale_limits import (
    GROWTH_INTERVAL,
    INITIAL_SCALE,
    LARGEST_SCALE,
    SMALLEST_SCALE,
)
from framework.errors import FrameworkError
from framework.optim.row_gradients import stored

_GROWTH, _BACKOFF = 2.0, 0.5


class LossScale:
    """Factor applied to losses before the backward pass, so that small gradients do not underflow in fp16.

    The scale is halved after a step whose gradients overflowed, and doubled after `growth_interval` finite steps in a
    row.

    Attributes:
        value: Scale of the next backward pass.
        num_finite_steps: Number of finite steps since the last change.
        num_overflows: Number of steps of the run whose update was skipped.
    """

    def __init__(self, init_scale: float = INITIAL_SCALE, growth_interval: int = GROWTH_INTERVAL) -> None:
        self.value = float(init_scale)
        self.growth_interval = growth_interval
        self.num_finite_steps = 0
        self.num_overflows = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divides the gradients by the scale, in place, without communication. Call it after the last reduction."""
        gradients = [stored(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.value)

    def update(self, overflowed: bool, step: int) -> None:
        """Updates the scale after a step. All ranks must pass the same arguments.

        Args:
            overflowed: True if a gradient, summed over all ranks, is not finite.
            step: Step counted from 1, for the error message.

        Raises:
            FrameworkError: The scale would fall below 1, so gradients overflow even without scaling.
        """
        if overflowed:
            self.num_overflows += 1
            self.num_finite_steps = 0
            self.value *= _BACKOFF
            if self.value < SMALLEST_SCALE:
                raise FrameworkError(
                    f"Step {step}: gradients overflowed in fp16 with a loss scale of {self.value / _BACKOFF:g}, and "
                    f"the update was skipped ({self.num_overflows} steps of the run overflowed). The scale must not "
                    f"fall below {SMALLEST_SCALE:g}. Use precision=bf16 or precision=fp32, or lower the learning rate, "
                    "and start again from the last checkpoint."
                )
            return
        self.num_finite_steps += 1
        if self.num_finite_steps == self.growth_interval:
            self.num_finite_steps = 0
            self.value = min(self.value * _GROWTH, LARGEST_SCALE)

    def metrics(self) -> dict[str, float]:
        """Returns the scale of the next step and the number of steps that overflowed, by metric key."""
        return {"optim/loss_scale": self.value, "optim/overflow_steps": float(self.num_overflows)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a resumed run, as values that JSON can store."""
        return {
            "value": self.value,
            "num_finite_steps": self.num_finite_steps,
            "num_overflows": self.num_overflows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state from `state_dict`."""
        self.value = float(state["value"])
        self.num_finite_steps = int(state["num_finite_steps"])
        self.num_overflows = int(state["num_overflows"])
