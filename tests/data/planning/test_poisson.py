"""Poisson samples of a private run: each item with one probability, the same for any split into micro-batches."""

import math

import numpy as np
import pytest

from framework.data.planning.poisson import PoissonPlan
from framework.privacy.secret import Secret
from tests.support.training.toy_run import ToySource

SIZE, STEPS = 200, 500


def plan_of(
    byte: int = 1, expected_batch: int = 20, budget: int = 100, num_ranks: int = 1, size: int = SIZE
) -> PoissonPlan:
    secret = Secret()
    secret.set(bytes([byte]) * 32)
    return PoissonPlan(ToySource(size), secret, expected_batch, budget, num_ranks)


def test_each_item_takes_part_with_the_same_probability_independently():
    plan = plan_of()
    drawn = np.zeros((STEPS, SIZE))
    for step in range(STEPS):
        drawn[step, plan.sequences(step).indices] = 1
    deviation = math.sqrt(0.1 * 0.9)
    assert abs(drawn.mean(0) - 0.1).max() < 4.5 * deviation / math.sqrt(STEPS)
    # The sizes vary as binomial numbers do; batches of a fixed size would not.
    variance = SIZE * 0.1 * 0.9
    assert abs(drawn.sum(1).var() - variance) < 4.5 * variance * math.sqrt(2 / STEPS)
    correlations = np.corrcoef(drawn.T)[np.triu_indices(SIZE, 1)]
    assert abs(correlations).max() < 6 / math.sqrt(STEPS)


def test_the_secret_alone_determines_the_samples():
    ours, same, other = plan_of(), plan_of(budget=40, num_ranks=2), plan_of(byte=2)
    for step in (0, 7):
        assert np.array_equal(ours.sequences(step).indices, same.sequences(step).indices)
        assert not np.array_equal(ours.sequences(step).indices, other.sequences(step).indices)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_and_micro_batches_share_each_sample(num_ranks: int):
    plan = plan_of(budget=40, num_ranks=num_ranks)
    for step in range(5):
        shares = [plan.micro_batches(step, rank) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        ids = np.sort(np.concatenate([micro.indices for share in shares for micro in share]))
        assert np.array_equal(ids, plan.sequences(step).indices)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_without_items_has_one_empty_micro_batch(num_ranks: int):
    plan = plan_of(expected_batch=1, num_ranks=num_ranks, size=30)
    empty = next(step for step in range(100) if not len(plan.sequences(step)))
    for rank in range(num_ranks):
        (batch,) = plan.batches(empty, rank)
        assert batch.num_sequences == 0 and len(batch.lengths) >= 1
    assert plan.summary([empty]).sequences == (0, 0)


def test_ids_are_unique_over_the_run_and_epochs_count_expected_passes():
    plan = plan_of(size=30, expected_batch=10)
    ids = np.concatenate([plan.sequences(step).sequence_ids for step in range(9)])
    assert len(np.unique(ids)) == len(ids)
    assert [plan.epoch(step) for step in (0, 2, 3, 8)] == [0, 0, 1, 2]
    assert plan.windows(3) == []
