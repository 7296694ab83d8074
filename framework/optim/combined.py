"""One optimizer object for the whole model; each parameter group names its algorithm.

There is a single object because Lightning counts one step per optimizer. The state exists from the start and is keyed
by parameter name, so a checkpoint can be loaded in place at any world size.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.optim import adamw, lamb, muon, stable_adamw
from framework.optim.row_gradients import DenseGradients
from framework.optim.shards import local

HOLDING_DEVICES = ("cuda",)
"""Devices on which an update can be held by a flag on the device, so that the host need not wait for it."""

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
        parameter_groups: Groups from `framework.optim.parameter_groups`. Each has `params`, `names`, `algorithm`, `lr`
            and the settings of the algorithm. `initial_lr` keeps the base rate; set `lr` to
            `initial_lr * schedule(step)` before each step.

    Attributes:
        before_change: Callback for threads that read weights or state. It is called before an update and before
            `swap_average`. Other code that changes them in place, such as loading a checkpoint, must call it too.
        hold_flag: fp32 scalar on the device; 1 holds the update if `holds_on_device`. Set it with `hold_unless_finite`.
        update_on_device: Function that runs the update if `holds_on_device`. It may be replaced by a captured one.
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
        self._all_parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._held = False
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._gradients = DenseGradients()
        self.update_on_device: Callable[[], Any] = self._update_on_device
        devices = {local(parameter).device for parameter in self._all_parameters}
        device = next(iter(devices))
        self._is_adamw_on_device = device.type in HOLDING_DEVICES and len(devices) == 1
        self._is_adamw_on_device &= all(group["algorithm"] == "adamw" for group in self.param_groups)
        self.hold_flag = torch.zeros((), dtype=torch.float32, device=device)
        rates = [group["initial_lr"] for group in self.param_groups]
        self._base_rates = torch.tensor(rates, dtype=torch.float64, device=device)
        # CUDA's kernel needs fp32. The CPU's converts the rate to a Python number.
        self._rates = self._base_rates.to(torch.float64 if device.type == "cpu" else torch.float32, copy=True)

    @property
    def holds_on_device(self) -> bool:
        """True if `step` reads the flag and the learning rates on the device, so that it can be captured."""
        return self._is_adamw_on_device and not self.keeps_average and not self._pairs

    @torch.no_grad()
    def hold_unless_finite(self, *values: Tensor) -> None:
        """Holds the update of this step if a scalar is not finite, else clears the flag. The host does not wait."""
        total = torch.stack([value.double() for value in values]).sum()
        torch.ne(total - total, 0.0, out=self.hold_flag)  # infinity - infinity is NaN

    def hold_update(self) -> None:
        """Skips the update of the current or next step. All ranks must agree.

        Call it before the step or in its closure, where Lightning calls `on_before_optimizer_step`. The caller of
        `step` still counts the step.
        """
        self._held = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates weights and state once, unless the update is held.

        Collective for sharded and replicated parameters: all ranks must call.

        Args:
            closure: Function called first, with gradients enabled, as Lightning requires.

        Returns:
            Result of the closure.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        held, self._held = self._held, False
        if held:
            return result
        self.before_change()
        with self._gradients.dense(self._all_parameters):
            if self.holds_on_device:
                self.update_on_device()
                return result
            self._add_followed(-1.0)
            for algorithm, update in _UPDATES.items():
                groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
                if groups:
                    update(groups, self.state)
            self._add_followed(1.0)
        if self._average_decay is not None:
            weights, averages = map(list, zip(*self._weights_and_averages(), strict=True))
            torch._foreach_lerp_(averages, weights, 1.0 - self._average_decay)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets all gradients to None, or to zero. The method of torch does more in each step, for other optimizers."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for parameter in self._all_parameters:
            parameter.grad = None

    def _update_on_device(self) -> None:
        adamw.update(self.param_groups, self.state, self.hold_flag, self._rates.unbind())

    def follow(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Makes weights follow others: the difference of the two is updated with the gradient of the follower.

        A follower therefore moves by its own update and by that of the weight that it follows, which gets no gradient
        from it. It is the sum sg(E_G) + E_delta of He et al. 2021 (DeBERTaV3, arXiv:2111.09543, section 3.2), stored
        as the sum.

        Args:
            pairs: Followers and the weights that they follow, of the same shape and sharding.
        """
        self._pairs = list(pairs)

    def _add_followed(self, factor: float) -> None:
        """Adds the followed weights times a factor to their followers."""
        for follower, followed in self._pairs:
            local(follower).add_(local(followed), alpha=factor)

    def keep_average(self, decay: float) -> None:
        """Starts a moving average at the current weights. It is sharded and saved like other state.

        After each update: average = decay * average + (1 - decay) * weight. There is no bias correction: after n
        updates the initial weights have a share of decay ** n.

        Args:
            decay: Decay per update, in (0, 1).
        """
        self._average_decay = decay
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter][AVERAGE] = parameter.detach().clone()

    @torch.no_grad()
    def reset_state(self) -> None:
        """Sets the state to that of a new optimizer. A moving average of the weights is kept."""
        self.before_change()
        for group in self.param_groups:
            for parameter in group["params"]:
                for name, value in _INITIAL_STATE[group["algorithm"]](parameter).items():
                    local(self.state[parameter][name]).copy_(local(value))

    @property
    def keeps_average(self) -> bool:
        """True if a moving average of the weights is kept."""
        return self._average_decay is not None

    @torch.no_grad()
    def swap_average(self) -> None:
        """Swaps weights and their average bit for bit; a second call restores them. Without an average it does nothing.

        Gathered copies of sharded weights are not updated; see
        `framework.distributed.parallel.parallelize.drop_gathered`.
        """
        if self._average_decay is not None:
            self.before_change()
            for weight, average in self._weights_and_averages():
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)

    def _weights_and_averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this rank's local part of each weight and of its average."""
        for group in self.param_groups:
            for parameter in group["params"]:
                yield local(parameter), local(self.state[parameter][AVERAGE])

    def set_learning_rates(self, factor: float) -> None:
        """Sets each group's rate to its base rate times the schedule's factor."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * factor
        if self.holds_on_device:
            torch.mul(self._base_rates, factor, out=self._rates)

    def named_state(self) -> dict[str, Tensor]:
        """Returns the state tensors by `<parameter name>.<state key>`; loading into them restores the state."""
        return {
            f"{name}.{key}": value
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            for key, value in self.state[parameter].items()
        }


def _nothing() -> None:
    """Does nothing: the default of `before_change`."""
