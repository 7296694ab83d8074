"""The fixed shapes of compiled steps: few budgets, and for each the sizes of everything that the encoder sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from framework.data.collate import Capacity, RoundedCapacity
from framework.data.planning.packing import budget_sizes

NUM_FIXED_SIZES = 2
"""The last micro-batch of a rank has half the budget or all of it.

Each size is compiled for each kind of layer (ModernBERT has three), and torch makes at most 8 codes of one function:
that leaves two sizes. With n micro-batches a rank and evenly spread loads they leave a quarter of a budget empty on
average, 1 / (4 n) of a step, where one size alone would leave 1 / (2 n); and every further size takes the compiler's
time at each start.
"""

_SPARE_SEQUENCES = 1.25
"""A micro-batch may have a quarter more sequences than a mean one, so that bins of short sequences fill up too; each
costs a dummy token where it is not there."""


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """What every micro-batch of a plan is filled up to.

    Attributes:
        micro_batch_sequences: Most real sequences of a micro-batch.
        capacities: By the budget of the micro-batch, ascending; the last is the full budget.
    """

    micro_batch_sequences: int
    capacities: Mapping[int, Capacity]


Shapes: TypeAlias = FixedShapes | RoundedCapacity | None
"""What the micro-batches of a plan are completed to; only fixed shapes limit their sequences. None leaves them free."""


def fixed_shapes(max_length: int, mean_length: float, micro_batch_tokens: int) -> FixedShapes:
    """The shapes for sequences of these lengths. Targets stay as many as there are: heads are not compiled.

    Args:
        max_length: Most tokens of a sequence, at most those of a micro-batch.
        mean_length: Mean tokens of a sequence.
        micro_batch_tokens: The full budget.
    """
    sequences = ceil(_SPARE_SEQUENCES * micro_batch_tokens / mean_length) + 1
    sizes = budget_sizes(micro_batch_tokens, max_length, NUM_FIXED_SIZES)
    return FixedShapes(
        sequences, {budget: Capacity.around(budget, sequences, None, max(max_length, 2)) for budget in sizes}
    )
