"""The permutation: a bijection, uniform by chi-square tests, and cheap at any size."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from framework.data import order
from framework.data.order import permute
from framework.random import key


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_is_a_bijection(size, seed):
    assert np.array_equal(np.sort(permute(seed, size, np.arange(size))), np.arange(size))


def test_any_positions_at_once_give_what_each_gives_alone():
    whole = permute(5, 1000, np.arange(1000))
    some = np.array([[7, 999], [0, 500]])
    assert np.array_equal(permute(5, 1000, some), whole[some])
    assert permute(5, 1000, np.array([], dtype=np.int64)).shape == (0,)


def test_keys_give_different_orders():
    assert (permute(1, 1000, np.arange(1000)) == permute(2, 1000, np.arange(1000))).sum() < 10


def p_value(counts: np.ndarray, expected: float) -> float:
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


@pytest.mark.parametrize(("size", "num_keys"), [(3, 500), (4, 1000)])
def test_every_permutation_of_a_small_epoch_is_equally_likely(size, num_keys):
    orders = [tuple(permute(key(3, "epoch", epoch), size, np.arange(size)).tolist()) for epoch in range(num_keys)]
    possible = list(itertools.permutations(range(size)))
    place = {permutation: number for number, permutation in enumerate(possible)}
    counts = np.bincount([place[found] for found in orders], minlength=len(possible))
    assert p_value(counts, num_keys / len(possible)) > 1e-3


def test_pairs_of_a_small_epoch_are_equally_likely():
    """Places 0 and 4 of 6, which share one half of the network: with 8 rounds this fails."""
    size, num_keys = 6, 2000
    pairs = np.array([permute(key(6, "epoch", epoch), size, np.array([0, 4])) for epoch in range(num_keys)])
    counts = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size * size)
    possible = ~np.eye(size, dtype=bool).ravel()
    assert not counts[~possible].any()
    assert p_value(counts[possible], num_keys / possible.sum()) > 1e-3


def test_pairs_of_a_middling_epoch_are_equally_likely():
    """The smallest epoch that has the usual number of rounds."""
    size, num_keys = order.SMALL_SIZE, 5_000
    pairs = np.array([permute(key(4, "epoch", epoch), size, np.array([0, 10])) for epoch in range(num_keys)])
    assert p_value(np.bincount(pairs[:, 0], minlength=size), num_keys / size) > 1e-3
    differences = np.bincount((pairs[:, 1] - pairs[:, 0]) % size, minlength=size)
    assert differences[0] == 0
    assert p_value(differences[1:], num_keys / (size - 1)) > 1e-3


def test_neighbours_in_a_large_epoch_are_independent():
    """Where 200,000 neighbouring places of 10^9 lead: even over the range, and the steps between them too."""
    size = 10**9
    indices = permute(9, size, np.arange(200_000) + 700_000_000)
    for values in (indices, np.diff(indices) % size):
        counts = np.bincount(values * 100 // size, minlength=100)
        assert p_value(counts, len(values) / 100) > 1e-3


def test_a_billion_sequences_cost_no_memory_and_no_time():
    size = 10**9
    last = np.arange(size - 1000, size)
    start = time.perf_counter()
    indices = permute(1, size, last)
    assert time.perf_counter() - start < 0.5
    assert len(set(indices.tolist())) == 1000
    assert indices.min() >= 0
    assert indices.max() < size


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_is_refused(position):
    with pytest.raises(ValueError, match="not within 0 to 9"):
        permute(1, 10, np.array([position]))
