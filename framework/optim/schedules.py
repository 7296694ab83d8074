"""Learning-rate schedules: pure functions from the step to a factor of each group's base rate.

`step` is the number of completed steps, so the first update uses `schedule(0)`. Warm-up rises linearly and reaches 1
with its last step: no step runs at rate 0. What decays reaches its final factor just after the last step.
"""

import math
from abc import ABC, abstractmethod

from typing_extensions import override

from framework.errors import ConfigError


def _steps(name: str, steps: int | None, fraction: float | None, max_steps: int) -> int:
    """Turns a number of steps or a fraction of all steps into steps; neither means 0."""
    if steps is not None and fraction is not None:
        raise ConfigError(
            f"schedule.{name}_steps={steps} and schedule.{name}_fraction={fraction} are both set; give one of them."
        )
    if fraction is not None:
        if not 0.0 <= fraction <= 1.0:
            raise ConfigError(f"schedule.{name}_fraction={fraction} is not in [0, 1]; give a part of all steps.")
        return round(fraction * max_steps)
    steps = steps or 0
    if not 0 <= steps <= max_steps:
        raise ConfigError(
            f"schedule.{name}_steps={steps} is not in [0, {max_steps}]; it must fit into trainer.max_steps."
        )
    return steps


class Schedule(ABC):
    """Warm-up, then what the subclass says.

    Args:
        max_steps: Steps of the whole run.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: The same as a part of max_steps; give at most one of the two.
    """

    def __init__(self, max_steps: int, warmup_steps: int | None = None, warmup_fraction: float | None = None) -> None:
        self.max_steps = max_steps
        self.warmup_steps = _steps("warmup", warmup_steps, warmup_fraction, max_steps)

    def __call__(self, step: int) -> float:
        """The factor for the update that follows `step` completed steps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The factor for a step that is past the warm-up."""

    def _progress(self, step: int) -> float:
        """Part of the way from the end of warm-up to the end of the run, in [0, 1]."""
        length = self.max_steps - self.warmup_steps
        return min(max((step - self.warmup_steps) / length, 0.0), 1.0) if length else 1.0


class Constant(Schedule):
    """Stays at 1."""

    @override
    def after_warmup(self, step: int) -> float:
        """Always 1."""
        return 1.0


class Linear(Schedule):
    """Falls in a straight line.

    Args:
        max_steps: Steps of the whole run.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: The same as a part of max_steps.
        final_factor: Value after the last step.
    """

    def __init__(
        self,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        final_factor: float = 0.0,
    ) -> None:
        super().__init__(max_steps, warmup_steps, warmup_fraction)
        self.final_factor = final_factor

    @override
    def after_warmup(self, step: int) -> float:
        """1 at the end of warm-up, final_factor at the end of the run."""
        return 1.0 + (self.final_factor - 1.0) * self._progress(step)


class Cosine(Linear):
    """Falls along half a cosine (Loshchilov, Hutter 2017, "SGDR", equation 5, without restarts)."""

    @override
    def after_warmup(self, step: int) -> float:
        """1 at the end of warm-up, final_factor at the end of the run."""
        half_cosine = 0.5 * (1.0 + math.cos(math.pi * self._progress(step)))
        return self.final_factor + (1.0 - self.final_factor) * half_cosine


class WarmupStableDecay(Schedule):
    """Stays at 1 and falls at the end as 1 - sqrt.

    After Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations", section 3.2.

    Args:
        max_steps: Steps of the whole run.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: The same as a part of max_steps.
        decay_steps: Steps of the decay at the end.
        decay_fraction: The same as a part of max_steps.
        final_factor: Value after the last step.
    """

    def __init__(
        self,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        decay_steps: int | None = None,
        decay_fraction: float | None = None,
        final_factor: float = 0.0,
    ) -> None:
        super().__init__(max_steps, warmup_steps, warmup_fraction)
        self.decay_steps = _steps("decay", decay_steps, decay_fraction, max_steps)
        self.final_factor = final_factor
        if self.warmup_steps + self.decay_steps > max_steps:
            raise ConfigError(
                f"Warm-up of {self.warmup_steps} and decay of {self.decay_steps} steps do not fit into {max_steps}; "
                "shorten one of them or raise trainer.max_steps."
            )

    @override
    def after_warmup(self, step: int) -> float:
        """1 until the decay begins, then 1 - sqrt(part of the decay)."""
        begin = self.max_steps - self.decay_steps
        if step < begin or not self.decay_steps:
            return 1.0
        part = min((step - begin) / self.decay_steps, 1.0)
        return 1.0 + (self.final_factor - 1.0) * math.sqrt(part)
