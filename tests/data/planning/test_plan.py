"""The plan: the same sequences at any number of ranks and any budget, none lost or repeated."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.planning.batch_size import BatchWarmup
from framework.data.planning.collate import FixedShape
from framework.data.planning.fixed_shapes import FixedShapes
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import PlanSummary, StepPlan, steps_per_epoch
from framework.errors import ConfigError
from framework.random import key
from tests.support.data.sequences import NumberedSource


def seen(plan: StepPlan, step: int) -> list[tuple[int, int, int]]:
    """Returns (epoch, index, sequence id) of everything that the ranks compute, sorted by the last."""
    actual = []
    for rank in range(plan.num_ranks):
        for share in plan.micro_batches(step, rank):
            actual += zip(share.epochs.tolist(), share.indices.tolist(), share.sequence_ids.tolist(), strict=True)
    return sorted(actual, key=lambda sequence: sequence[2])


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 60),
    global_batch_size=st.integers(1, 40),
    num_ranks=st.integers(1, 9),
    budget=st.integers(20, 200),
    most=st.one_of(st.none(), st.integers(1, 5)),
    step=st.integers(0, 10**6),
    wraps=st.booleans(),
    warmup_steps=st.one_of(st.none(), st.integers(1, 10**6)),
)
def test_ranks_together_see_what_one_rank_sees(
    size, global_batch_size, num_ranks, budget, most, step, wraps, warmup_steps
):
    source = NumberedSource(size)
    warmup = BatchWarmup(1, warmup_steps) if wraps and warmup_steps else None
    alone = StepPlan(source, 3, global_batch_size, 10**6, wraps_epochs=wraps, batch_warmup=warmup)
    shapes = most and FixedShapes(most, {budget: FixedShape.around(budget, most, None, 20)})
    plan = StepPlan(source, 3, global_batch_size, budget, num_ranks, wraps, shapes=shapes, batch_warmup=warmup)
    assert seen(plan, step) == seen(alone, step)
    whole = alone.sequences(step)
    assert seen(plan, step) == list(zip(whole.epochs, whole.indices, whole.sequence_ids, strict=True))
    shares = [plan.micro_batches(step, rank) for rank in range(num_ranks)]
    assert len({tuple(micro_batch.budget for micro_batch in share) for share in shares}) == 1
    for micro_batch in itertools.chain(*shares):
        assert source.lengths(micro_batch.epochs, micro_batch.indices).sum() <= micro_batch.budget <= budget
        assert len(micro_batch) <= (most or len(whole))
        assert np.all(np.diff(micro_batch.sequence_ids) > 0)


def test_training_steps_run_across_epoch_ends():
    plan = StepPlan(NumberedSource(10), 5, 4, 100, wraps_epochs=True)
    steps = [plan.sequences(step) for step in range(5)]
    assert [len(step) for step in steps] == [4] * 5
    assert np.concatenate([step.sequence_ids for step in steps]).tolist() == list(range(20))
    assert np.concatenate([step.epochs for step in steps]).tolist() == [0] * 10 + [1] * 10
    indices = np.concatenate([step.indices for step in steps])
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10].tolist() != indices[10:].tolist()
    assert [plan.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_a_step_may_hold_several_epochs_of_a_small_split():
    step = StepPlan(NumberedSource(3), 5, 8, 100, wraps_epochs=True).sequences(1)
    assert step.epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted(step.indices[1:4]) == sorted(step.indices[4:7]) == [0, 1, 2]


def test_fine_tuning_ends_an_epoch_with_a_short_step():
    plan = StepPlan(NumberedSource(10), 5, 4, 100)
    assert len(plan) == plan.steps_per_epoch == steps_per_epoch(10, 4) == 3
    steps = [plan.sequences(step) for step in range(6)]
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert np.concatenate([step.sequence_ids for step in steps]).tolist() == list(range(20))
    assert [set(step.epochs.tolist()) for step in steps] == [{0}] * 3 + [{1}] * 3
    indices = np.concatenate([step.indices for step in steps])
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 16])
def test_evaluation_takes_every_row_once_in_order(num_ranks):
    plan = StepPlan(NumberedSource(11), 5, 4, 100, num_ranks, shuffle=False)
    actual = [sequence for step in range(len(plan)) for sequence in seen(plan, step)]
    assert actual == [(0, row, row) for row in range(11)]


def test_order_follows_the_seed():
    orders = [StepPlan(NumberedSource(50), seed, 50, 2000).sequences(0).indices.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("block_size", [None, 64])
def test_the_order_of_a_step_does_not_depend_on_the_steps_before(monkeypatch, block_size: int | None):
    """9,000 sequences are shuffled in three parts; steps of 32 cross their ends and those of epochs."""
    monkeypatch.setattr(NumberedSource, "shuffle", Shuffle(block_size, window_blocks=4))
    source = NumberedSource(9000)
    plan = StepPlan(source, 5, 32, 10**6, wraps_epochs=True)
    stream = np.concatenate([plan.sequences(step).indices for step in range(600)])
    for epoch in (0, 1):
        expected = source.shuffle.indices(key(5, "order", epoch), 9000, np.arange(9000))
        assert stream[9000 * epoch : 9000 * (epoch + 1)].tolist() == expected.tolist()
    for step in (599, 0, 281, 127, 128, 3):
        assert plan.sequences(step).indices.tolist() == stream[32 * step : 32 * (step + 1)].tolist()


def test_a_growing_batch_uses_the_sequences_in_their_order():
    warmup = BatchWarmup(start=2, steps=4)
    plan = StepPlan(NumberedSource(10), 5, 6, 100, wraps_epochs=True, batch_warmup=warmup)
    steps = [plan.sequences(step) for step in range(6)]
    assert [len(step) for step in steps] == [2, 4, 4, 6, 6, 6]
    assert np.concatenate([step.sequence_ids for step in steps]).tolist() == list(range(28))
    assert [plan.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]
    constant = StepPlan(NumberedSource(10), 5, 28, 100, wraps_epochs=True).sequences(0)
    assert np.concatenate([step.indices for step in steps]).tolist() == constant.indices.tolist()


def test_micro_batches_know_their_budget():
    plan = StepPlan(NumberedSource(10, max_length=10, same_length=True), 0, 10, 40, num_ranks=2)
    # 50 tokens each: one of 40, and 10 is the fourth of the sixteenths of 40, rounded up: 3, 5, 8, 10.
    for rank in range(2):
        micro_batches = plan.micro_batches(0, rank)
        assert [(len(micro_batch), micro_batch.budget) for micro_batch in micro_batches] == [(4, 40), (1, 10)]
    assert plan.budgets == [10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40]


def test_a_summary_by_hand():
    plan = StepPlan(NumberedSource(10, max_length=10, same_length=True), 0, 6, 40, num_ranks=2)
    # Step 0: 3 sequences per rank in a micro-batch of 30; step 1: 2 in one of 20.
    assert plan.summary(range(1)) == PlanSummary((6, 6), (1, 1), (30,), 1.0)
    assert plan.summary(range(2)) == PlanSummary((4, 6), (1, 1), (20, 30), 1.0)
    odd = StepPlan(NumberedSource(10, max_length=10, same_length=True), 0, 9, 40, num_ranks=2)
    # 5 sequences on one rank and 4 on the other.
    assert odd.summary([0]) == PlanSummary((9, 9), (2, 2), (10,), 0.9)


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (10, {"global_batch_size": 0}, "global_batch_size is 0"),
        (10, {"num_ranks": 0}, "num_ranks is 0"),
        (0, {}, "0 sequences"),
        (10, {"micro_batch_tokens": 19}, "Set micro_batch_tokens to at least 20"),
        (10, {"batch_warmup": BatchWarmup(1, 7)}, "batch_warmup_steps is 7, but each epoch of this task ends"),
        (10, {"batch_warmup": BatchWarmup(5, 7), "wraps_epochs": True}, "batch_warmup_start is 5, but .* to 4"),
    ],
)
def test_impossible_plans_are_rejected(size, arguments, message):
    numbers = {"global_batch_size": 4, "micro_batch_tokens": 100} | arguments
    with pytest.raises(ConfigError, match=message):
        StepPlan(NumberedSource(size), 0, **numbers)
