"""Fixed shapes: their sizes computed by hand, and every micro-batch of a plan fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.planning.fixed_shapes import fixed_shapes
from framework.data.planning.plan import StepPlan
from tests.support.data.sequences import NumberedSource

EVEN = np.arange(1000.0)
"""Tokens of steps that spread evenly over a budget of 1,000."""


def test_sizes_by_hand():
    """At a mean of 100 tokens per sequence, 1,000 tokens hold 10 sequences; a quarter more, and one, make 14."""
    shapes = fixed_shapes(max_length=200, mean_length=100.0, micro_batch_tokens=1000, rank_tokens=EVEN)
    assert shapes.micro_batch_sequences == 14
    assert list(shapes.by_budget) == [500, 1000]
    half, whole = shapes.by_budget.values()
    # d dummies of at most 200 tokens must hold 1,000 tokens and one for each of 14 + d sequences: d = 6.
    assert (whole.tokens, whole.sequences, whole.targets, whole.max_seqlen) == (1020, 20, None, 200)
    assert (half.tokens, half.sequences) == (517, 17)


@pytest.mark.parametrize(
    ("rank_tokens", "budgets"),
    [
        ([610, 605, 615], [625, 1000]),
        ([4610, 4605, 4615], [625, 1000]),
        ([610, 605, 130], [625, 1000]),
        ([610, 130, 120], [188, 1000]),
        ([990, 985, 995], [1000]),
        ([3100, 3100, 3950], [125, 1000]),
    ],
)
def test_the_smaller_size_has_the_least_filler(rank_tokens, budgets):
    """Sixteenths of 1,000 tokens, rounded up: 63, 125, 188, 250, ..., 625, ..."""
    assert list(fixed_shapes(50, 10.0, 1000, np.array(rank_tokens)).by_budget) == budgets


def test_a_size_holds_the_longest_sequence():
    assert list(fixed_shapes(700, 100.0, 1000, np.array([610])).by_budget) == [750, 1000]
    assert list(fixed_shapes(990, 100.0, 1000, np.array([610])).by_budget) == [1000]


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 60),
    global_batch_size=st.integers(1, 40),
    num_ranks=st.integers(1, 4),
    budget=st.integers(20, 200),
    step=st.integers(0, 1000),
)
def test_every_micro_batch_fits(size, global_batch_size, num_ranks, budget, step):
    source = NumberedSource(size)
    plan = StepPlan(source, 3, global_batch_size, budget, num_ranks)
    plan.set_budget(budget, fixed_shapes(source.max_length, source.mean_length, budget, plan.rank_tokens(4)))
    for rank in range(num_ranks):
        for share in plan.micro_batches(step, rank):
            batch = source.build(share, step, share.shape)
            assert share.shape is not None
            assert len(batch.input_ids) == share.shape.tokens == sum(batch.lengths)
            assert len(batch.lengths) == share.shape.sequences
            assert max(batch.lengths) <= batch.max_seqlen == 20
            assert np.isclose(batch.num_tokens, source.lengths(share.epochs, share.indices).sum())
