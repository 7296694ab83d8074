"""The plan: the same sequences at any number of ranks and any budget, none lost or repeated, tokens even."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.plan import StepPlan, spread_evenly, steps_per_epoch
from framework.errors import ConfigError
from tests.data.sequences import NumberedSource


def seen(plan: StepPlan, step: int) -> list[tuple[int, int, int]]:
    """(epoch, index, sequence id) of everything that the ranks compute, sorted by the last."""
    found = []
    for rank in range(plan.num_ranks):
        for share in plan.micro_batches(step, rank):
            found += zip(share.epochs.tolist(), share.indices.tolist(), share.sequence_ids.tolist(), strict=True)
    return sorted(found, key=lambda sequence: sequence[2])


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 60),
    global_batch_size=st.integers(1, 40),
    num_ranks=st.integers(1, 9),
    budget=st.integers(20, 200),
    most=st.one_of(st.none(), st.integers(1, 5)),
    step=st.integers(0, 10**6),
    wraps=st.booleans(),
)
def test_ranks_together_see_what_one_rank_sees(size, global_batch_size, num_ranks, budget, most, step, wraps):
    source = NumberedSource(size)
    alone = StepPlan(source, 3, global_batch_size, 10**6, wraps_epochs=wraps)
    plan = StepPlan(source, 3, global_batch_size, budget, num_ranks, wraps, micro_batch_sequences=most)
    assert seen(plan, step) == seen(alone, step)
    whole = alone.sequences(step)
    assert seen(plan, step) == list(zip(whole.epochs, whole.indices, whole.sequence_ids, strict=True))
    shares = [plan.micro_batches(step, rank) for rank in range(num_ranks)]
    assert len({len(share) for share in shares}) == 1
    for micro_batch in itertools.chain(*shares):
        assert source.lengths(micro_batch.epochs, micro_batch.indices).sum() <= budget
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
    found = [sequence for step in range(len(plan)) for sequence in seen(plan, step)]
    assert found == [(0, row, row) for row in range(11)]


def test_order_follows_the_seed():
    orders = [StepPlan(NumberedSource(50), seed, 50, 2000).sequences(0).indices.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_sequences_spread_by_hand():
    """Six sequences, budget 10, two ranks: 26 tokens need two micro-batches each; longest first to the emptiest."""
    shares = spread_evenly(np.array([2, 8, 3, 5, 7, 1]), budget=10, num_ranks=2, max_sequences=6)
    # 8 -> a, 7 -> b, 5 -> c, 3 -> d, 2 -> d, 1 -> c (5 against 6: the first of equals)
    assert [[share.tolist() for share in rank] for rank in shares] == [[[1], [0, 2]], [[4], [3, 5]]]


def test_a_tight_budget_falls_back_to_best_fit():
    """Emptiest first would give 5 + 4 and 5 + 3 + 3, which is above 10."""
    shares = spread_evenly(np.array([5, 5, 4, 3, 3]), budget=10, num_ranks=1, max_sequences=5)
    assert sorted(tuple(share.tolist()) for share in shares[0]) == [(0, 1), (2, 3, 4)]


def test_a_rank_may_have_a_micro_batch_without_sequences():
    shares = spread_evenly(np.array([10, 10, 10, 10, 10]), budget=10, num_ranks=2, max_sequences=5)
    assert [[len(share) for share in rank] for rank in shares] == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_are_even_in_tokens(num_ranks):
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 120, size=512) + 8, 512)
    shares = spread_evenly(lengths, 4096, num_ranks, 512)
    tokens = [sum(int(lengths[share].sum()) for share in rank) for rank in shares]
    assert max(tokens) / min(tokens) < 1.02


def test_packs_are_full_from_eight_micro_batches_up():
    lengths = np.minimum(np.random.default_rng(1).geometric(1 / 120, size=300) + 8, 512)
    budget = -(-int(lengths.sum()) // 8) + 8
    assert len(spread_evenly(lengths, budget, 1, 300)[0]) == 8
    source = NumberedSource(640, max_length=128, same_length=True)
    assert StepPlan(source, 0, 64, 1024).efficiency(range(3)) == 1.0


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (10, {"global_batch_size": 0}, "global_batch_size is 0"),
        (10, {"num_ranks": 0}, "num_ranks is 0"),
        (10, {"micro_batch_sequences": 0}, "micro_batch_sequences is 0"),
        (0, {}, "0 sequences"),
        (10, {"micro_batch_tokens": 19}, "set micro_batch_tokens to at least 20"),
    ],
)
def test_impossible_plans_are_refused(size, arguments, message):
    numbers = {"global_batch_size": 4, "micro_batch_tokens": 100} | arguments
    with pytest.raises(ConfigError, match=message):
        StepPlan(NumberedSource(size), 0, **numbers)


def test_a_sequence_above_the_budget_is_refused():
    with pytest.raises(ConfigError, match="a sequence has 11 tokens, above micro_batch_tokens=10"):
        spread_evenly(np.array([3, 11]), 10, 1, 2)
