"""Exposures against values computed by hand, and against uniform ranks."""

import math

import numpy as np
import pytest

from framework.audits.exposure import WITHOUT_MEMORIZATION, chance, exposures, ranks


def test_ranks_and_exposures_of_scores_written_by_hand():
    own = np.array([3.0, -1.0, 0.0])
    others = np.array([[1.0, 2.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, -1.0]])
    found = ranks(own, others)
    assert found.tolist() == [1.0, 4.0, 2.5]  # the tie counts one half
    assert exposures(found, 3).tolist() == [2.0, 0.0, pytest.approx(math.log2(4 / 2.5))]


def test_uniform_ranks_have_the_stated_mean_and_chances_that_are_uniform_or_larger():
    random = np.random.default_rng(3)
    bits = exposures(random.integers(1, 1002, (4000, 5)).astype(float), 1000)
    assert abs(bits.mean() - WITHOUT_MEMORIZATION) < 4.5 * WITHOUT_MEMORIZATION / math.sqrt(bits.size)
    chances = np.array([chance(row) for row in bits])
    for limit in (0.01, 0.1, 0.5):
        assert abs((chances < limit).sum() - 4000 * limit) < 4.5 * math.sqrt(4000 * limit * (1 - limit))


def test_chances_equal_their_closed_forms():
    assert chance(np.array([5.0])) == pytest.approx(2.0**-5)  # P(rank <= (N + 1) / 32)
    total = 7 * math.log(2)
    assert chance(np.array([3.0, 4.0])) == pytest.approx(math.exp(-total) * (1 + total))
    assert chance(np.zeros(3)) == 1.0
    assert 0 <= chance(np.full(10_000, 9.97)) < 1e-300
