"""How many sequences the steps of a run take: all the same, or growing at the beginning. Exact integers, no state."""

from bisect import bisect_left
from dataclasses import dataclass

from framework.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchWarmup:
    """The global batch grows linearly at the beginning of a run.

    Attributes:
        start: Sequences of the first step, about.
        steps: Steps until the full size is reached.

    Raises:
        ConfigError: A number below 1.
    """

    start: int
    steps: int

    def __post_init__(self) -> None:
        for name in ("start", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"batch_warmup_{name} is {getattr(self, name)}, it must be at least 1; raise it.")


def sequences_before(step: int, global_batch_size: int, warmup: BatchWarmup | None = None) -> int:
    """Sequences that a run has taken after a number of steps.

    During the warm-up that is the integral of a straight line, rounded down: start * s + (size - start) * s^2 / (2 *
    steps). Each step takes the difference of two such numbers: never below the start, never above the size.

    Args:
        step: Completed steps.
        global_batch_size: Sequences of a step of full size, at least those of the warm-up's start.
        warmup: None: every step has full size.
    """
    if warmup is None:
        return step * global_batch_size
    growing = min(step, warmup.steps)
    growth = (global_batch_size - warmup.start) * growing * growing // (2 * warmup.steps)
    return warmup.start * growing + growth + global_batch_size * (step - growing)


def steps_until(num_sequences: int, global_batch_size: int, warmup: BatchWarmup | None = None) -> int:
    """The fewest steps that take at least so many sequences: the inverse of `sequences_before`."""
    # No step takes less than one sequence.
    return bisect_left(
        range(num_sequences + 1), num_sequences, key=lambda step: sequences_before(step, global_batch_size, warmup)
    )


def sequences_of(tokens: int, mean_length: float) -> int:
    """Sequences that have about so many tokens together; at least 1."""
    return max(1, round(tokens / mean_length))
