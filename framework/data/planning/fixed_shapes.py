"""Fixed shapes of compiled steps: two token budgets, and for each the sizes of all tensors that the encoder sees.

The last micro-batch of a rank has the full budget or a smaller one. torch compiles each size for each kind of layer
(ModernBERT has three), keeps at most 8 variants of a function, and every further size costs compile time at each
start. Therefore only two sizes are used. The smaller budget is the one that wastes the fewest tokens. If the loads of
the steps are spread evenly, it is half the budget, which wastes a quarter of a budget on average where a single size
would waste a half. If all steps have about the same load, it fits that load, and little is wasted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np

from framework.data.planning.collate import FixedShape, RoundedShape
from framework.data.planning.packing import budget_sizes

_SPARE_SEQUENCES = 1.25
"""Allowed sequences of a micro-batch, relative to a mean one. A quarter more lets bins of short sequences fill up too.
Each unused one costs a dummy token."""

_SLACK = 1.01
"""Required size of a micro-batch relative to its content, since sequences do not fill it to the last token."""


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """Shapes to which all micro-batches of a plan are padded.

    Attributes:
        micro_batch_sequences: Most real sequences of a micro-batch.
        by_budget: Shape for each budget of a micro-batch, in ascending order; the last is the full budget.
    """

    micro_batch_sequences: int
    by_budget: Mapping[int, FixedShape]


Shapes: TypeAlias = FixedShapes | RoundedShape | None
"""Shapes to which micro-batches of a plan are padded; None adds no padding. Only fixed shapes limit the sequences."""


def fixed_shapes(
    max_length: int,
    mean_length: float,
    micro_batch_tokens: int,
    rank_tokens: np.ndarray,
    most_targets: Callable[[int, int], int] | None = None,
) -> FixedShapes:
    """Chooses the shapes for sequences of these lengths.

    Args:
        max_length: Most tokens of a sequence; at most the full budget.
        mean_length: Mean tokens of a sequence.
        micro_batch_tokens: Full budget of a micro-batch.
        rank_tokens: (steps,) tokens of a rank in a sample of steps, for which the smaller budget is optimized.
        most_targets: Function from tokens and sequences of a micro-batch to the entries of its targets with axis
            "targets" (`framework.data.planning.plan.ChosenTargets`); None: it has no such targets.
    """
    sequences = ceil(_SPARE_SEQUENCES * micro_batch_tokens / mean_length) + 1
    # In descending order, so that argmin takes the full budget if no smaller one helps.
    sizes = np.array(budget_sizes(micro_batch_tokens, max_length))[::-1, None]
    needed = rank_tokens % micro_batch_tokens * _SLACK
    computed = np.where(needed <= sizes, sizes, micro_batch_tokens).mean(axis=1)
    budgets = sorted({int(sizes[computed.argmin(), 0]), micro_batch_tokens})

    def shape(budget: int) -> FixedShape:
        targets = None if most_targets is None else most_targets(budget, sequences)
        return FixedShape.around(budget, sequences, targets, max(max_length, 2))

    return FixedShapes(sequences, {budget: shape(budget) for budget in budgets})
