"""Fixed shapes of compiled steps: three token budgets, and for each the sizes of all tensors that the encoder sees.

All micro-batches of a rank have the largest of these budgets, except that the last one may have a smaller one. torch
compiles each size for each kind of layer (ModernBERT has three), which costs time at each start. Therefore few sizes
are used: those that compute the fewest tokens over a sample of steps. The largest may be below the token budget of the
config, so that the micro-batches of a step become about equal.
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

_SLACK = 1.005
"""Required size of a micro-batch relative to its content, since sequences do not fill it to the last token."""

_NUM_SHAPES = 3
_NUM_SIZES = 64
"""Budgets are multiples of 1/64 of the token budget. With 1/16, a step of half a budget had up to 12 % filler."""
_MICRO_BATCH_COST = 1 / 16
"""Fixed cost of a micro-batch, as a fraction of the token budget, so that no tiny micro-batches are planned."""


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """Shapes to which all micro-batches of a plan are padded.

    Attributes:
        micro_batch_sequences: Most real sequences of a micro-batch.
        by_budget: Shape for each budget of a micro-batch, in ascending order. All micro-batches of a rank but the last
            have the last shape.
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
        micro_batch_tokens: Most real tokens of a micro-batch.
        rank_tokens: (steps,) tokens of a rank in a sample of steps, for which the budgets are optimized.
        most_targets: Function from tokens and sequences of a micro-batch to the entries of its targets with axis
            "targets" (`framework.data.planning.plan.ChosenTargets`); None: it has no such targets.
    """
    sizes = np.array(budget_sizes(micro_batch_tokens, max_length, _NUM_SIZES))
    budgets = _best_budgets(sizes, np.ceil(rank_tokens * _SLACK), _MICRO_BATCH_COST * micro_batch_tokens)
    sequences = ceil(_SPARE_SEQUENCES * budgets[-1] / mean_length) + 1

    def shape(budget: int) -> FixedShape:
        targets = None if most_targets is None else most_targets(budget, sequences)
        return FixedShape.around(budget, sequences, targets, max(max_length, 2))

    return FixedShapes(sequences, {budget: shape(budget) for budget in budgets})


def _best_budgets(sizes: np.ndarray, needed: np.ndarray, micro_batch_cost: float) -> list[int]:
    """Returns the budgets, at most `_NUM_SHAPES` of the ascending sizes, that compute the fewest tokens.

    For each largest budget, a dynamic program selects the smaller ones by the tokens that are left for the last
    micro-batch of each step.
    """
    best, budgets = np.inf, [int(sizes[-1])]
    for largest in sizes:
        full = np.ceil(needed / largest) - 1
        below = sizes[sizes <= largest]
        num_fitting = np.searchsorted(np.sort(needed - full * largest), below, side="right")
        # Tokens of all last micro-batches that fit the size i, if it is the largest of n selected sizes.
        computed, choices = num_fitting * below, []
        for _ in range(_NUM_SHAPES - 1):
            candidates = computed[:, None] + (num_fitting - num_fitting[:, None]) * below
            candidates = np.where(np.tri(len(below), k=-1, dtype=bool), np.inf, candidates)
            choices.append(candidates.argmin(axis=0))
            computed = candidates.min(axis=0)
        cost = computed[-1] + (full * (largest + micro_batch_cost)).sum()
        if cost < best:
            best, places = cost, [len(below) - 1]
            for choice in choices[::-1]:
                places.append(int(choice[places[-1]]))
            budgets = sorted({int(below[place]) for place in places})
    return budgets
