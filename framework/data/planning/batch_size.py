"""Batch size of each step: constant, or growing at the beginning of a run. Exact integer arithmetic without state."""

from bisect import bisect_left
from dataclasses import dataclass

from framework.errors import check_at_least


@dataclass(frozen=True, slots=True)
class BatchWarmup:
    """Linear growth of the global batch at the beginning of a run.

    Attributes:
        start: Approximate number of sequences of the first step.
        steps: Steps until the full size is reached.

    Raises:
        ConfigError: A number is below 1.
    """

    start: int
    steps: int

    def __post_init__(self) -> None:
        for name in ("start", "steps"):
            check_at_least(f"batch_warmup_{name}", getattr(self, name), 1)


def sequences_before(step: int, global_batch_size: int, warmup: BatchWarmup | None = None) -> int:
    """Returns the number of sequences that a run has consumed after a number of steps.

    During the warm-up this is the integral of a straight line, rounded down: start * s + (size - start) * s^2 / (2 *
    steps). Each step consumes the difference of two such numbers, which is never below the start or above the size.

    Args:
        step: Completed steps.
        global_batch_size: Sequences of a step of full size; at least the warm-up's start.
        warmup: Growth of the batch; with None every step has full size.
    """
    if warmup is None:
        return step * global_batch_size
    growing = min(step, warmup.steps)
    growth = (global_batch_size - warmup.start) * growing * growing // (2 * warmup.steps)
    return warmup.start * growing + growth + global_batch_size * (step - growing)


def steps_until(num_sequences: int, global_batch_size: int, warmup: BatchWarmup | None = None) -> int:
    """Returns the fewest steps that consume at least this many sequences: the inverse of `sequences_before`."""
    # Every step consumes at least one sequence.
    return bisect_left(
        range(num_sequences + 1), num_sequences, key=lambda step: sequences_before(step, global_batch_size, warmup)
    )


@dataclass(frozen=True, slots=True)
class TokenSteps:
    """Converts between steps and tokens of a run, by the mean length of its training sequences.

    Attributes:
        mean_length: Mean number of tokens of a sequence.
        global_batch_size: Sequences of a step of full size.
        batch_warmup: Growth of the batch; None: no growth.
    """

    mean_length: float
    global_batch_size: int
    batch_warmup: BatchWarmup | None = None

    def steps(self, tokens: float) -> int:
        """Returns the fewest steps, at least 1, with about this many tokens."""
        sequences = max(1, round(tokens / self.mean_length))
        return steps_until(sequences, self.global_batch_size, self.batch_warmup)

    def tokens(self, steps: int) -> float:
        """Returns the mean number of tokens of the first steps of a run."""
        return sequences_before(steps, self.global_batch_size, self.batch_warmup) * self.mean_length


def growth_steps(tokens: int, mean_length: float, start: int, global_batch_size: int) -> int:
    """Returns the steps, at least 1, of a growth of the batch from `start` sequences that lasts about `tokens`."""
    return max(1, round(2 * tokens / (mean_length * (start + global_batch_size))))


def sequences_of(tokens: int, mean_length: float) -> int:
    """Returns the number of sequences, at least 1, that have about this many tokens together."""
    return max(1, round(tokens / mean_length))
