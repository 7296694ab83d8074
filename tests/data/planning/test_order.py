"""The order in one level and in two: bijections, uniform by chi-square tests, and cheap at any size."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from framework.data.planning import order
from framework.data.planning.order import BalancedShuffle, Shuffle, permute
from framework.errors import ConfigError
from framework.random import key


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_is_a_bijection(size, seed):
    assert np.array_equal(np.sort(permute(seed, size, np.arange(size))), np.arange(size))


def test_many_positions_at_once_give_the_indices_of_each_alone():
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
    number_of = {permutation: number for number, permutation in enumerate(possible)}
    counts = np.bincount([number_of[order] for order in orders], minlength=len(possible))
    assert p_value(counts, num_keys / len(possible)) > 1e-3


def test_pairs_of_a_small_epoch_are_equally_likely():
    """Positions 0 and 4 of 6 share one half of the network: with 8 rounds this fails."""
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
    """Indices at 200,000 neighbouring positions of 10^9 are even over the range, and so are the steps between them."""
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
def test_a_position_out_of_range_is_rejected(position):
    with pytest.raises(ValueError, match="not within 0 to 9"):
        permute(1, 10, np.array([position]))


def slow_shuffle(shuffle: Shuffle, order_key: int, size: int) -> list[list[list[int]]]:
    """Returns the blocks of each window and the order in which the window is read, computed with lists."""
    block_size, window_blocks = shuffle.block_size, shuffle.window_blocks
    blocks = [list(range(begin, min(begin + block_size, size))) for begin in range(0, size, block_size)]
    short = blocks.pop() if size % block_size else None
    if blocks:
        blocks = [blocks[index] for index in permute(key(order_key, "blocks"), len(blocks), np.arange(len(blocks)))]
    if short is not None:
        blocks.insert(key(order_key, "short block") % (len(blocks) + 1), short)
    windows = []
    for window, begin in enumerate(range(0, len(blocks), window_blocks)):
        inside = blocks[begin : begin + window_blocks]
        indices = [index for block in inside for index in block]
        order = permute(key(order_key, "window", window), len(indices), np.arange(len(indices)))
        windows.append([sorted(inside), [indices[position] for position in order]])
    return windows


def test_two_levels_by_hand(monkeypatch):
    """7 indices in blocks of 2 and windows of 2 blocks; `permute` reverses every order, the short block is third."""
    monkeypatch.setattr(order, "permute", lambda _, size, positions: size - 1 - positions)
    monkeypatch.setattr(order, "key", lambda *parts: 2 if parts[1] == "short block" else 0)
    # Blocks 0 1, 2 3, 4 5 reversed, and 6 third: 4 5 | 2 3 | 6 | 0 1. Windows 4 5 2 3 and 6 0 1, reversed.
    shuffle = Shuffle(block_size=2, window_blocks=2)
    assert shuffle.indices(0, 7, np.arange(7)).tolist() == [3, 2, 5, 4, 1, 0, 6]
    for position in range(7):
        expected = [[2, 4], [4, 6]] if position < 4 else [[0, 2], [6, 7]]
        assert shuffle.window(0, 7, position).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 200), block_size=st.integers(1, 30), window_blocks=st.integers(1, 8), seed=st.integers(0, 2**63)
)
def test_two_levels_equal_lists_of_blocks(size, block_size, window_blocks, seed):
    """A bijection; the short block and the short window may be anywhere; positions of a window read only its blocks."""
    shuffle = Shuffle(block_size, window_blocks)
    windows = slow_shuffle(shuffle, seed, size)
    expected = np.array([index for _, indices in windows for index in indices])
    actual = shuffle.indices(seed, size, np.arange(size)[::-1])[::-1]
    assert actual.tolist() == expected.tolist()
    assert np.array_equal(np.sort(actual), np.arange(size))
    some = np.array([[0, size // 2], [size - 1, size // 3]])
    assert np.array_equal(shuffle.indices(seed, size, some), expected[some])
    assert shuffle.indices(seed, size, some[:0]).shape == (0, 2)
    position = 0
    for blocks, indices in windows:
        ranges = [[block[0], block[-1] + 1] for block in blocks]
        for each in (position, position + len(indices) - 1):
            assert shuffle.window(seed, size, each).tolist() == ranges
        position += len(indices)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 3000), block_size=st.integers(20, 4000), seed=st.integers(0, 2**63))
def test_two_levels_are_a_bijection(size, block_size, seed):
    indices = Shuffle(block_size, window_blocks=5).indices(seed, size, np.arange(size))
    assert np.array_equal(np.sort(indices), np.arange(size))


def test_without_blocks_it_is_one_permutation():
    assert np.array_equal(Shuffle().indices(5, 1000, np.arange(1000)), permute(5, 1000, np.arange(1000)))
    assert Shuffle().window(5, 1000, 3).tolist() == [[0, 1000]]


def test_an_order_does_not_change_between_versions():
    """A run that resumes with another version of this package must continue with the same order."""
    assert permute(3, 10**9, np.arange(4) + 10**8).tolist() == [520015956, 300971426, 632594058, 212157506]
    assert permute(3, 77, np.arange(6)).tolist() == [4, 33, 37, 30, 56, 40]


def test_every_index_is_equally_likely_at_both_levels():
    """120 indices in 12 blocks and 3 windows: the indices at positions 5 and 6 of one window and at 50 of the next."""
    shuffle, num_keys = Shuffle(block_size=10, window_blocks=4), 800
    positions = np.array([5, 6, 50])
    actual = np.array([shuffle.indices(key(8, "epoch", epoch), 120, positions) for epoch in range(num_keys)])
    blocks, offsets = np.divmod(actual, 10)
    for values, number in ((actual[:, 0], 120), (blocks[:, 0], 12), (blocks[:, 2], 12), (offsets[:, 0], 10)):
        assert p_value(np.bincount(values, minlength=number), num_keys / number) > 1e-3
    # Two positions of one window share a block as often as two random ones of its 40 indices; of two windows, never.
    share = 9 / 39
    same = blocks[:, 0] == blocks[:, 1]
    assert abs(same.sum() - share * num_keys) < 5 * np.sqrt(num_keys * share * (1 - share))
    assert not (blocks[:, 0] == blocks[:, 2]).any()
    # Within a shared block, each step from one to the other is equally likely.
    steps = np.bincount((offsets[same, 1] - offsets[same, 0]) % 10, minlength=10)
    assert steps[0] == 0
    assert p_value(steps[1:], same.sum() / 9) > 1e-3


def test_the_short_block_may_be_in_any_window():
    """103 indices in 11 blocks, the last with 3: windows of 4, 4 and 3 blocks."""
    shuffle, num_keys = Shuffle(block_size=10, window_blocks=4), 300
    counts = np.zeros(3)
    for epoch in range(num_keys):
        # One of these positions is in every window, wherever the short block is.
        windows = [shuffle.window(key(9, "epoch", epoch), 103, position)[-1].tolist() for position in (0, 60, 102)]
        assert windows.count([100, 103]) == 1
        counts[windows.index([100, 103])] += 1
    expected = num_keys * np.array([4, 4, 3]) / 11
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), 2) > 1e-3


def test_epochs_are_independent_at_both_levels():
    shuffle, size = Shuffle(block_size=10, window_blocks=20), 4000
    first, second = (shuffle.indices(key(1, "epoch", epoch), size, np.arange(size)) for epoch in (0, 1))
    # Poisson with mean 1.
    assert (first == second).sum() < 10
    # 20 windows of 20 of the 400 blocks share one block on average (hypergeometric, variance 0.9).
    shared = [
        len(np.intersect1d(first[begin : begin + 200] // 10, second[begin : begin + 200] // 10))
        for begin in range(0, size, 200)
    ]
    assert abs(sum(shared) - 20) < 5 * np.sqrt(20 * 0.9)
    # The same block is read in another order.
    orders = [indices[indices // 10 == 7].tolist() for indices in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_seeking_in_billions_costs_no_memory():
    """The last of 3 * 10^9 sequences, and the middle."""
    size, shuffle = 3 * 10**9 + 7, Shuffle(block_size=4096, window_blocks=64)
    positions = np.concatenate([np.arange(size - 500, size), np.arange(500) + size // 2])
    tracemalloc.start()
    indices = shuffle.indices(1, size, positions)
    ranges = [shuffle.window(1, size, int(positions[each])) for each in (0, 999)]
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
    assert len(set(indices.tolist())) == 1000
    for own, window in ((indices[:500], ranges[0]), (indices[500:], ranges[1])):
        assert len(window) <= 64
        assert ((own[:, None] >= window[:, 0]) & (own[:, None] < window[:, 1])).any(axis=1).all()


@pytest.mark.parametrize(("option", "value"), [("block_size", 0), ("window_blocks", -2)])
def test_a_shuffle_without_indices_is_rejected(option, value):
    with pytest.raises(ConfigError, match=f"the shuffle's {option} is {value}. It must be at least 1"):
        Shuffle(**{option: value})


def test_a_position_out_of_range_of_two_levels_is_rejected():
    with pytest.raises(ValueError, match="not within 0 to 9"):
        Shuffle(3).indices(1, 10, np.array([10]))
    with pytest.raises(ValueError, match="not within 0 to 9"):
        Shuffle(3).window(1, 10, -1)


GROUPS = np.array([2] * 70 + [0] * 7 + [5] * 3 + [2] * 20)  # sizes 7, 90, 3


def test_groups_have_equal_parts_of_each_epoch_and_rows_equal_parts_of_small_groups():
    balanced = BalancedShuffle.of(GROUPS)
    seen = np.zeros(100, dtype=np.int64)
    for epoch in range(200):
        indices = balanced.indices(key(3, epoch), 100, np.arange(100))
        counts = np.bincount(indices, minlength=100)
        assert np.bincount(GROUPS[indices], minlength=6).tolist() == [33, 0, 33, 0, 0, 34]
        assert set(counts[GROUPS == 0]) == {4, 5} and set(counts[GROUPS == 5]) == {11, 12}
        assert counts[GROUPS == 2].max() == 1
        seen += counts
    # Each of the 90 rows of the large group is in 33 / 90 of the epochs: mean 73, standard deviation 6.8.
    large = seen[GROUPS == 2]
    assert large.sum() == 200 * 33 and large.min() > 73 - 4 * 7 and large.max() < 73 + 4 * 7


def test_positions_of_a_balanced_epoch_are_independent_of_the_call():
    balanced = BalancedShuffle.of(GROUPS)
    whole = balanced.indices(9, 100, np.arange(100))
    some = np.array([99, 3, 50])
    assert np.array_equal(balanced.indices(9, 100, some), whole[some])
    assert not np.array_equal(balanced.indices(8, 100, np.arange(100)), whole)
    # Groups are spread over the epoch.
    assert all(len(set(GROUPS[whole[start : start + 20]])) == 3 for start in range(0, 100, 20))


def test_the_mean_of_a_balanced_epoch_is_that_of_the_groups():
    balanced = BalancedShuffle.of(np.array([1, 1, 1, 4]))
    assert balanced.mean(np.array([3, 3, 6, 20])) == 12.0 and Shuffle().mean(np.array([3, 3, 6, 20])) == 8.0
