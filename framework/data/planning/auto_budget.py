"""`micro_batch_tokens: auto`: the largest budget that fits, predicted from trials that surely fit.

The peak memory of a step is a constant (weights, optimizer state, gradients) and a number of bytes for each token of a
micro-batch. Trials of growing budgets give both; a trial is at most half of what the ones before it predict, so that
memory never runs out, and no rank is left alone in a collective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from framework.batch import PackedBatch
from framework.data.planning.collate import Shape
from framework.data.planning.fixed_shapes import FixedShapes, Shapes
from framework.data.planning.plan import SequenceSource

CPU_BUDGET = 4096
"""On the CPU memory is not what limits a micro-batch: larger ones run no faster."""
MEMORY_FRACTION = 0.9
"""Of the memory that this process can have: the allocator's gaps and an odd batch take the rest."""
_SLACK = 1.05
"""Room for a step that has a few more tokens than the mean one."""
_GROWTH = 4.0
_WORTHWHILE = 1.5


@dataclass(frozen=True, slots=True)
class Trial:
    """What one forward and backward pass took, on the rank that took most.

    Attributes:
        tokens: Of the micro-batch.
        peak_bytes: Most memory that was held.
        before_bytes: Memory that was held before.
    """

    tokens: int
    peak_bytes: float
    before_bytes: float


def largest_budget(attempt: Callable[[int], Trial], smallest: int, most: int, limit_bytes: float) -> int:
    """Finds the largest budget whose peak stays within the limit; `smallest` is always tried and taken for granted.

    Args:
        attempt: Runs a micro-batch of about so many tokens, fillers included. All ranks get the same answers.
        smallest: Budget of the first trial.
        most: No larger budget is wanted, and none is tried.
        limit_bytes: Of memory.
    """
    first = attempt(smallest)
    # Twice the tokens add at most once more what this trial added to the memory before it.
    if 2 * smallest > most or 2 * first.peak_bytes - first.before_bytes > limit_bytes:
        return smallest
    last = attempt(2 * smallest)
    while True:
        slope = (last.peak_bytes - first.peak_bytes) / max(1, last.tokens - first.tokens)
        room = max(0.0, limit_bytes - last.peak_bytes)
        fitting = last.tokens + room / slope if slope > 0 else float("inf")
        following = min(_GROWTH * last.tokens, 0.5 * fitting, most)
        if following < _WORTHWHILE * last.tokens:
            return max(smallest, int(min(fitting, most)))
        first, last = last, attempt(int(following))


def even_budget(largest: int, step_tokens: float, smallest: int) -> int:
    """The budget with which a rank's tokens of a step fill equal micro-batches, as few as the largest budget allows."""
    count = ceil(_SLACK * step_tokens / largest)
    return min(largest, max(smallest, ceil(_SLACK * step_tokens / count)))


def trial_batch(source: SequenceSource, tokens: int, max_steps: int, shapes: Shapes) -> PackedBatch:
    """A full micro-batch of the first sequences, with as many targets as the first or the last step gives them."""
    indices = np.arange(tokens) % len(source)
    epochs = np.zeros_like(indices)
    lengths = source.lengths(epochs, indices)
    count = int(np.searchsorted(np.cumsum(lengths), tokens, side="right"))
    shape: Shape
    if isinstance(shapes, FixedShapes):
        count, shape = min(count, shapes.micro_batch_sequences), shapes.by_budget[tokens]
    else:
        shape = shapes
    epochs, indices = epochs[:count], indices[:count]
    built = [source.build(epochs, indices, np.arange(count), step, shape) for step in (0, max_steps - 1)]
    return max(built, key=lambda batch: sum(batch.counts.values()))
