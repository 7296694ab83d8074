"""One optimizer object for a whole model: each parameter group names its algorithm.

One object, because Lightning counts a step for each optimizer. State exists from the start and is keyed by the
parameter's name, so that a checkpoint can be loaded in place at any world size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.optim import adamw, lamb, muon, stable_adamw
from framework.optim.shards import local

AVERAGE = "ema"
"""State key of the moving average of a weight."""

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

    Attributes:
        before_change: Called before anything changes weights or state in place: here an update and the exchange with
            the average; who else does it (a checkpoint that is loaded) calls it too. For who reads them in another
            thread.
    """

    def __init__(self, parameter_groups: list[dict[str, Any]]) -> None:
        for group in parameter_groups:
            group["initial_lr"] = group["lr"]
        super().__init__(parameter_groups, defaults={})
        self.before_change: Callable[[], None] = _nothing
        self._average_decay: float | None = None
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _INITIAL_STATE[group["algorithm"]](parameter)
        self._held = False

    def hold_update(self) -> None:
        """Makes the step that is running, or the next one, leave weights and state as they are. All ranks must agree.

        To be called before the step, or by its closure, in which Lightning calls `on_before_optimizer_step`. The caller
        of `step` counts it as a step all the same.
        """
        self._held = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, unless it is held. Collective where parameters are sharded or replicated: all ranks must call.

        Args:
            closure: Called first, with gradients on, as Lightning wants it.

        Returns:
            What the closure returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        held, self._held = self._held, False
        if held:
            return result
        self.before_change()
        for algorithm, update in _UPDATES.items():
            groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            if groups:
                update(groups, self.state)
        if self._average_decay is not None:
            weights, averages = map(list, zip(*self._weights_and_averages(), strict=True))
            torch._foreach_lerp_(averages, weights, 1.0 - self._average_decay)
        return result

    def keep_average(self, decay: float) -> None:
        """Begins a moving average of the weights with their present values; it is sharded and saved as other state is.

        After each update: average = decay * average + (1 - decay) * weight. Nothing corrects for the beginning, so
        that the initial weights have a part of decay ** steps.

        Args:
            decay: In (0, 1).
        """
        self._average_decay = decay
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter][AVERAGE] = parameter.detach().clone()

    @property
    def keeps_average(self) -> bool:
        """Whether there is a moving average."""
        return self._average_decay is not None

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchanges the weights and their average to the bit, so that a second call undoes it; nothing without one.

        Copies of the weights that data parallelism holds gathered do not follow
        (`framework.distributed.parallel.parallelize.drop_gathered`).
        """
        if self._average_decay is not None:
            self.before_change()
            for weight, average in self._weights_and_averages():
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)

    def _weights_and_averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of each."""
        for group in self.param_groups:
            for parameter in group["params"]:
                yield local(parameter), local(self.state[parameter][AVERAGE])

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


def _nothing() -> None:
    """Nobody reads the tensors beside the training."""
