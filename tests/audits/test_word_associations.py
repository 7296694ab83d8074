"""Tests of WEAT against values computed by hand."""

from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from framework.audits.word_associations import associations, effect_size, permutation_p

EAST, NORTH = np.array([1.0, 0.0]), np.array([0.0, 2.0])


def test_association_is_the_difference_of_mean_cosines():
    words = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, -5.0]])
    found = associations(words, np.stack([EAST, EAST + NORTH]), NORTH[None])
    # Cosines with (1, 0), with (1, 2) / sqrt 5, and with (0, 1).
    expected = [
        (1 + 1 / sqrt(5)) / 2 - 0,
        (1 / sqrt(2) + 3 / sqrt(10)) / 2 - 1 / sqrt(2),
        (0 - 2 / sqrt(5)) / 2 + 1,
    ]
    assert found == pytest.approx(expected)


def test_effect_size_is_in_sample_standard_deviations():
    # All targets: 4, 2, 1, 1 with mean 2 and sum of squares 6, so that the standard deviation is sqrt 2.
    assert effect_size(np.array([4.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(2 / sqrt(2))
    assert effect_size(np.ones(2), np.ones(2)) == 0


def test_exact_p_counts_partitions_that_reach_the_observed_one():
    # Of the 6 partitions of {4, 3, 2, 1} into pairs only {4, 3} reaches 7; {4, 2} and {4, 3} reach 6.
    assert permutation_p(np.array([4.0, 3.0]), np.array([2.0, 1.0]), 10, 0) == (pytest.approx(1 / 6), True)
    assert permutation_p(np.array([4.0, 2.0]), np.array([3.0, 1.0]), 10, 0) == (pytest.approx(2 / 6), True)
    assert permutation_p(np.array([1.0, 2.0]), np.array([3.0, 4.0]), 10, 0) == (1.0, True)


def test_equal_sums_are_ties_whatever_their_order():
    values = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    assert permutation_p(values[:3], values[3:], 10, 0)[0] == pytest.approx(
        sum(sum(part) >= 0.6 - 1e-12 for part in combinations(values, 3)) / comb(6, 3)
    )


def test_sampled_p_is_near_the_exact_one(monkeypatch):
    random = np.random.default_rng(0)
    one, other = random.normal(0.5, 1, 8), random.normal(0, 1, 8)
    exact, is_exact = permutation_p(one, other, 10, 0)
    assert is_exact
    monkeypatch.setattr("framework.audits.word_associations._MAX_EXACT", 0)
    sampled, is_exact = permutation_p(one, other, 40_000, 3, "test")
    assert not is_exact
    assert sampled == pytest.approx(exact, abs=4 * sqrt(exact * (1 - exact) / 40_000))
    assert permutation_p(one, other, 40_000, 3, "test")[0] == sampled
    # No drawn partition reaches the observed one, which is one of the samples.
    assert permutation_p(one + 100, other, 99, 3)[0] == pytest.approx(1 / 100)


def test_target_sets_may_have_different_sizes():
    # 3 partitions of {5, 1, 0} into 1 and 2; only {5} reaches 5.
    assert permutation_p(np.array([5.0]), np.array([1.0, 0.0]), 10, 0)[0] == pytest.approx(1 / 3)
