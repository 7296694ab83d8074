"""`micro_batch_tokens: auto`: the largest budget that fits in memory, predicted from smaller trials.

The peak memory of a step is a constant (weights, optimizer state, gradients) plus a number of bytes per token of the
micro-batch. Trials of growing budgets measure both. Each trial uses at most half of the budget that the previous trials
predict, so that no rank runs out of memory and leaves the others waiting in a collective.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from framework.batch import PackedBatch
from framework.data.planning.collate import FixedShape, Shape
from framework.data.planning.fixed_shapes import FixedShapes, Shapes
from framework.data.planning.plan import SequenceSource, StepPlan, StepSequences

CPU_BUDGET = 4096
"""Budget on the CPU, where memory does not limit a micro-batch and larger ones run no faster."""
MEMORY_FRACTION = 0.9
"""Usable fraction of this process's memory. The rest covers allocator fragmentation and an unusually large batch."""
_SLACK = 1.05
"""Margin for a step that has a few more tokens than the mean step."""
_GROWTH = 4.0
_WORTHWHILE = 1.5


@dataclass(frozen=True, slots=True)
class Trial:
    """Memory of one forward and backward pass, on the rank that used most.

    Attributes:
        tokens: Tokens of the micro-batch.
        peak_bytes: Peak memory during the pass.
        before_bytes: Memory in use before the pass.
    """

    tokens: int
    peak_bytes: float
    before_bytes: float

    def of_captured_step(self) -> "Trial":
        """Returns the trial of a step that is captured as a graph.

        The graph keeps the memory of the pass, and an ordinary run that it is compared with needs as much once more.
        """
        return replace(self, peak_bytes=2 * self.peak_bytes - self.before_bytes)


def largest_budget(attempt: Callable[[int], Trial], smallest: int, most: int, limit_bytes: float) -> int:
    """Finds the largest budget whose peak memory stays within the limit. `smallest` is assumed to fit.

    Args:
        attempt: Function that runs a micro-batch of about the given number of tokens, fillers included. It must return
            the same result on all ranks.
        smallest: Budget of the first trial.
        most: Upper bound of the budgets that are tried and returned.
        limit_bytes: Memory limit.
    """
    first = attempt(smallest)
    # Doubling the tokens at most doubles the memory that this trial added.
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
    """Returns the budget that splits a rank's tokens of a step into the fewest possible micro-batches of equal size."""
    count = ceil(_SLACK * step_tokens / largest)
    return min(largest, max(smallest, ceil(_SLACK * step_tokens / count)))


def best_budget(
    plan: StepPlan, smallest: int, attempt: Callable[[int], Trial] | None, limit_bytes: float = float("inf")
) -> int:
    """Returns the budget that splits the steps of a plan evenly and fits in memory.

    Args:
        plan: Plan of training.
        smallest: Smallest possible budget, which is the longest sequence of any split.
        attempt: Function that runs a micro-batch (`largest_budget`); None on the CPU, where memory is not a limit.
        limit_bytes: Memory limit.
    """
    step_tokens = plan.global_batch_size * plan.source.mean_length / plan.num_ranks
    largest = max(smallest, CPU_BUDGET)
    if attempt is not None:
        largest = largest_budget(attempt, smallest, max(smallest, int(2 * step_tokens)), limit_bytes)
    return even_budget(largest, step_tokens, smallest)


def trial_batch(source: SequenceSource, tokens: int, max_steps: int, shapes: Shapes) -> PackedBatch:
    """Builds a full micro-batch of the first sequences, at the first or the last step, whichever has more targets."""
    indices = np.arange(tokens) % len(source)
    epochs = np.zeros_like(indices)
    lengths = source.lengths(epochs, indices)
    count = int(np.searchsorted(np.cumsum(lengths), tokens, side="right"))
    shape: Shape
    if isinstance(shapes, FixedShapes):
        # The shapes of a plan may be smaller than the budget.
        longest = max(fixed.max_seqlen for fixed in shapes.by_budget.values())
        shape = FixedShape.around(tokens, max(count, shapes.micro_batch_sequences), None, longest)
    else:
        shape = shapes
    sequences = StepSequences(epochs[:count], indices[:count], np.arange(count))
    built = [source.build(sequences, step, shape) for step in (0, max_steps - 1)]
    return max(built, key=lambda batch: sum(batch.counts.values()))
