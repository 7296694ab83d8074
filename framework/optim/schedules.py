"""Learning-rate schedules: pure functions from the step to a factor of each group's base rate.

`step` is the number of completed steps, so the first update uses `schedule(0)`. Warm-up rises linearly and reaches 1 at
its last step: no step runs at rate 0. A decaying schedule reaches its final factor just after the last step.
"""

import math
from abc import ABC, abstractmethod
from typing import Protocol

from typing_extensions import override

from framework.errors import ConfigError


class StepsOfTokens(Protocol):
    """Conversion between steps and tokens of a run."""

    def steps(self, tokens: float) -> int:
        """Returns the fewest steps with about this many tokens."""
        ...

    def tokens(self, steps: int) -> float:
        """Returns the number of tokens of the first steps."""
        ...


def _check_one_length(name: str, **lengths: float | None) -> None:
    given = [f"schedule.{name}_{unit}={value}" for unit, value in lengths.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} are set together. They exclude each other. Set all but one of them to null."
        )


def _of_tokens(name: str, tokens: int | None, token_steps: StepsOfTokens | None) -> StepsOfTokens | None:
    """Returns the conversion of a length in tokens; None if the length is not in tokens."""
    if tokens is None:
        return None
    if tokens < 0 or token_steps is None:
        raise ConfigError(
            f"schedule.{name}_tokens is {tokens}. It must be a number of tokens of a training run, at least 0. Correct "
            f"it, or set schedule.{name}_steps."
        )
    return token_steps


def _steps(name: str, steps: int | None, fraction: float | None, max_steps: int) -> int:
    """Converts a number of steps, or a fraction of all steps, to steps. Neither means 0."""
    if fraction is not None:
        if not 0.0 <= fraction <= 1.0:
            raise ConfigError(
                f"schedule.{name}_fraction is {fraction}. It is a fraction of all steps. Choose a value in [0, 1]."
            )
        return round(fraction * max_steps)
    steps = steps or 0
    if not 0 <= steps <= max_steps:
        raise ConfigError(
            f"schedule.{name}_steps is {steps}. It must fit into trainer.max_steps. Choose 0 to {max_steps}."
        )
    return steps


class Schedule(ABC):
    """Linear warm-up, followed by the schedule of the subclass.

    Args:
        max_steps: Steps of the whole run.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: Warm-up as a fraction of max_steps.
        warmup_tokens: Tokens of warm-up. Give at most one of the three.
        token_steps: Conversion of tokens to steps; the run supplies it.
    """

    def __init__(
        self,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        warmup_tokens: int | None = None,
        token_steps: StepsOfTokens | None = None,
    ) -> None:
        self.max_steps = max_steps
        _check_one_length("warmup", steps=warmup_steps, fraction=warmup_fraction, tokens=warmup_tokens)
        conversion = _of_tokens("warmup", warmup_tokens, token_steps)
        if warmup_tokens and conversion is not None:
            warmup_steps = conversion.steps(warmup_tokens)
        self.warmup_steps = _steps("warmup", warmup_steps, warmup_fraction, max_steps)

    def __call__(self, step: int) -> float:
        """Returns the factor of the update after `step` completed steps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Returns the factor of a step after the warm-up."""

    def _progress(self, step: int) -> float:
        """Returns the progress from the end of warm-up to the end of the run, in [0, 1]."""
        length = self.max_steps - self.warmup_steps
        return min(max((step - self.warmup_steps) / length, 0.0), 1.0) if length else 1.0


class Constant(Schedule):
    """Stays at 1."""

    @override
    def after_warmup(self, step: int) -> float:
        """Returns 1."""
        return 1.0


class Linear(Schedule):
    """Linear decay.

    Args:
        max_steps: Steps of the whole run.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: Warm-up as a fraction of max_steps.
        final_factor: Factor after the last step.
        warmup_tokens: Tokens of warm-up.
        token_steps: Conversion of tokens to steps.
    """

    def __init__(
        self,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        final_factor: float = 0.0,
        warmup_tokens: int | None = None,
        token_steps: StepsOfTokens | None = None,
    ) -> None:
        super().__init__(max_steps, warmup_steps, warmup_fraction, warmup_tokens, token_steps)
        self.final_factor = final_factor

    @override
    def after_warmup(self, step: int) -> float:
        """Returns 1 at the end of warm-up, falling to final_factor at the end of the run."""
        return 1.0 + (self.final_factor - 1.0) * self._progress(step)


class Cosine(Linear):
    """Decay along half a cosine (Loshchilov, Hutter 2017, "SGDR", equation 5, without restarts)."""

    @override
    def after_warmup(self, step: int) -> float:
        """Returns 1 at the end of warm-up, falling to final_factor at the end of the run."""
        half_cosine = 0.5 * (1.0 + math.cos(math.pi * self._progress(step)))
        return self.final_factor + (1.0 - self.final_factor) * half_cosine


class WarmupStableDecay(Schedule):
    """Constant 1, followed by a 1 - sqrt decay at the end.

    Source: Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations", section
    3.2.

    Args:
        max_steps: Steps of the whole run.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: Warm-up as a fraction of max_steps.
        decay_steps: Steps of the decay at the end.
        decay_fraction: Decay as a fraction of max_steps.
        final_factor: Factor after the last step.
        warmup_tokens: Tokens of warm-up.
        decay_tokens: Tokens of the decay at the end.
        token_steps: Conversion of tokens to steps.
    """

    def __init__(
        self,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        decay_steps: int | None = None,
        decay_fraction: float | None = None,
        final_factor: float = 0.0,
        warmup_tokens: int | None = None,
        decay_tokens: int | None = None,
        token_steps: StepsOfTokens | None = None,
    ) -> None:
        super().__init__(max_steps, warmup_steps, warmup_fraction, warmup_tokens, token_steps)
        _check_one_length("decay", steps=decay_steps, fraction=decay_fraction, tokens=decay_tokens)
        conversion = _of_tokens("decay", decay_tokens, token_steps)
        if decay_tokens and conversion is not None:
            before = conversion.tokens(max_steps) - decay_tokens
            decay_steps = max_steps - conversion.steps(before) if before > 0 else max_steps
        self.decay_steps = _steps("decay", decay_steps, decay_fraction, max_steps)
        self.final_factor = final_factor
        if self.warmup_steps + self.decay_steps > max_steps:
            raise ConfigError(
                f"Warm-up takes {self.warmup_steps} and decay {self.decay_steps} of {max_steps} steps. Their sum must "
                "not exceed trainer.max_steps. Shorten one of them, or raise trainer.max_steps."
            )

    @override
    def after_warmup(self, step: int) -> float:
        """Returns 1 before the decay, then 1 - sqrt(progress of the decay)."""
        begin = self.max_steps - self.decay_steps
        if step < begin or not self.decay_steps:
            return 1.0
        part = min((step - begin) / self.decay_steps, 1.0)
        return 1.0 + (self.final_factor - 1.0) * math.sqrt(part)
