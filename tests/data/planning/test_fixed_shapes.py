"""Fixed shapes: their sizes computed by hand, and every micro-batch of a plan fits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.planning.fixed_shapes import fixed_shapes
from framework.data.planning.plan import StepPlan
from tests.support.data.sequences import NumberedSource

SIXTY_FOURTHS = [-(-1000 * number // 64) for number in range(1, 65)]


def computed(budgets: list[int], rank_tokens: list[int]) -> float:
    """Tokens of all micro-batches of these steps, and 62.5 for each micro-batch of a budget of 1,000."""
    total, full = 0.0, budgets[-1]
    for tokens in rank_tokens:
        left = math.ceil(tokens * 1.005)
        while left > full:
            left, total = left - full, total + full + 62.5
        total += min(budget for budget in budgets if budget >= left)
    return total


def test_sizes_by_hand():
    """At a mean of 100 tokens per sequence, 594 tokens hold 5.94 sequences; a quarter more, and one, make 9."""
    shapes = fixed_shapes(
        max_length=200, mean_length=100.0, micro_batch_tokens=1000, rank_tokens=np.array([590.0, 420])
    )
    assert shapes.micro_batch_sequences == 9
    assert list(shapes.by_budget) == [204, 438, 594]
    _, smaller, larger = shapes.by_budget.values()
    # d dummies of at most 200 tokens must hold 594 tokens and one for each of 9 + d sequences: d = 4.
    assert (larger.tokens, larger.sequences, larger.targets, larger.max_seqlen) == (607, 13, None, 200)
    assert (smaller.tokens, smaller.sequences) == (450, 12)


@pytest.mark.parametrize(
    ("rank_tokens", "budgets"),
    [
        ([610, 605, 615], [63, 610, 625]),
        ([990, 985, 995], [63, 1000]),
        ([610, 130, 120], [125, 141, 625]),
        # Two even micro-batches instead of 1,000 and 410 tokens.
        ([1400, 1410, 1405], [657, 672, 750]),
    ],
)
def test_budgets_fit_the_steps(rank_tokens, budgets):
    """Sixty-fourths of 1,000 tokens, rounded up: ..., 125, 141, ..., 610, 625, ..., 985, 1,000."""
    assert list(fixed_shapes(50, 10.0, 1000, np.array(rank_tokens)).by_budget) == budgets


@pytest.mark.parametrize("seed", range(4))
def test_no_other_budgets_compute_fewer_tokens(seed):
    rng = np.random.default_rng(seed)
    rank_tokens = (rng.integers(300, 2500) + rng.integers(0, 300, 6)).tolist()
    found = list(fixed_shapes(400, 10.0, 1000, np.array(rank_tokens)).by_budget)
    sizes = [size for size in SIXTY_FOURTHS if size >= 400]
    least = min(computed(sorted(budgets), rank_tokens) for budgets in itertools.combinations(sizes, 3))
    assert len(found) <= 3
    assert computed(found, rank_tokens) == pytest.approx(least)


def test_steps_of_half_a_budget_have_little_filler():
    """64 reviews a step at a budget of two steps: with sixteenths of the budget they had 12 % filler."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(np.log(260), 0.6, 64 * 200), 512).astype(int)
    steps = lengths.reshape(200, 64).sum(axis=1)
    budgets = list(fixed_shapes(512, lengths.mean(), 32768, steps[:64]).by_budget)
    assert computed(budgets, steps.tolist()) < 1.08 * steps.sum()


def test_a_budget_holds_the_longest_sequence():
    assert list(fixed_shapes(700, 100.0, 1000, np.array([610])).by_budget) == [704]
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
