"""The fixed shapes of compiled steps: two budgets, and for each the sizes of everything that the encoder sees.

The last micro-batch of a rank has all of the budget or a part of it. Each size is compiled for each kind of layer
(ModernBERT has three), torch makes at most 8 codes of one function, and every further size takes the compiler's time at
each start: that leaves two. The part is the one that leaves least empty. Where the loads of steps spread evenly it is a
half, which leaves a quarter of a budget empty on average, and one size alone would leave a half; where every step has
about the same load it is that one, and little is empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np

from framework.data.planning.collate import FixedShape, RoundedShape
from framework.data.planning.packing import budget_sizes

_SPARE_SEQUENCES = 1.25
"""A micro-batch may have a quarter more sequences than a mean one, so that bins of short sequences fill up too; each
costs a dummy token where it is not there."""

_SLACK = 1.01
"""How much larger a micro-batch should be than what it must hold: sequences do not fill it to the last token."""


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """What every micro-batch of a plan is filled up to.

    Attributes:
        micro_batch_sequences: Most real sequences of a micro-batch.
        by_budget: By the budget of the micro-batch, ascending; the last is the full budget.
    """

    micro_batch_sequences: int
    by_budget: Mapping[int, FixedShape]


Shapes: TypeAlias = FixedShapes | RoundedShape | None
"""What the micro-batches of a plan are completed to; only fixed shapes limit their sequences. None leaves them free."""


def fixed_shapes(max_length: int, mean_length: float, micro_batch_tokens: int, rank_tokens: np.ndarray) -> FixedShapes:
    """The shapes for sequences of these lengths. Targets stay as many as there are: heads are not compiled.

    Args:
        max_length: Most tokens of a sequence, at most those of a micro-batch.
        mean_length: Mean tokens of a sequence.
        micro_batch_tokens: The full budget.
        rank_tokens: (steps,) tokens of a rank in some steps, for which the smaller size is chosen.
    """
    sequences = ceil(_SPARE_SEQUENCES * micro_batch_tokens / mean_length) + 1
    # Descending, so that of sizes that are as good, which help no step, the full one is taken.
    sizes = np.array(budget_sizes(micro_batch_tokens, max_length))[::-1, None]
    needed = rank_tokens % micro_batch_tokens * _SLACK
    computed = np.where(needed <= sizes, sizes, micro_batch_tokens).mean(axis=1)
    budgets = sorted({int(sizes[computed.argmin(), 0]), micro_batch_tokens})
    return FixedShapes(
        sequences, {budget: FixedShape.around(budget, sequences, None, max(max_length, 2)) for budget in budgets}
    )
