"""One optimizer object for a whole model: each parameter group names its algorithm.

One object, because Lightning counts a step for each optimizer. State exists from the start and is keyed by the
parameter's name, so that a checkpoint can be loaded in place at any world size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.optim import adamw, lamb, muon, stable_adamw

_INITIAL_STATE = {
    "adamw": adamw.initial_state,
    "lamb": adamw.initial_state,
    "muon": muon.initial_state,
    "stable_adamw": adamw.initial_state,
}
_UPDATES = {"adamw": adamw.update, "lamb": lamb.update, "muon": muon.update, "stable_adamw": stable_adamw.update}


class CombinedOptimizer(Optimizer):
    """One algorithm for each parameter group.

    Args:
        parameter_groups: Of `framework.optim.parameter_groups`; each has `params`, `names`, `algorithm`, `lr` and what
            the algorithm wants. `initial_lr` keeps the base rate; set `lr` to `initial_lr * schedule(step)` before each
            step.
    """

    def __init__(self, parameter_groups: list[dict[str, Any]]) -> None:
        for group in parameter_groups:
            group["initial_lr"] = group["lr"]
        super().__init__(parameter_groups, defaults={})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _INITIAL_STATE[group["algorithm"]](parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. Collective where parameters are sharded or replicated: all ranks must call.

        Args:
            closure: Called first, with gradients on, as Lightning wants it.

        Returns:
            What the closure returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for algorithm, update in _UPDATES.items():
            groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            if groups:
                update(groups, self.state)
        return result

    def set_learning_rates(self, factor: float) -> None:
        """Sets each group's rate to its base rate times the schedule's factor."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def named_state(self) -> dict[str, Tensor]:
        """The state by parameter name, dot, state key: the tensors themselves; loading into them restores it."""
        return {
            f"{name}.{key}": value
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            for key, value in self.state[parameter].items()
        }
