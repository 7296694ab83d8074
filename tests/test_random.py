import numpy as np
import pytest

from framework.random import key, mix, random_integers, uniform


def test_the_hash_is_splitmix64():
    """The first three numbers of SplitMix64 from state 0, as its authors' code gives them."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    for counters in (states, states.view(np.int64)):
        assert mix(0, counters).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert states.tolist() == [0, golden, 2 * golden % 2**64]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint8])
def test_hashing_a_counter_appends_it_to_the_key(dtype):
    counters = np.array([[0, 1, 2], [100, 101, 200]]).astype(dtype)
    before = counters.copy()
    bases = np.array([key(1, "one"), key(2, "two")], dtype=np.uint64)
    expected = [
        [key(number, name, int(counter)) for counter in row]
        for number, name, row in zip((1, 2), ("one", "two"), counters, strict=True)
    ]
    assert mix(bases[:, None], counters).tolist() == expected
    assert mix(bases[:, None], counters[:, ::2]).tolist() == [row[::2] for row in expected]
    assert mix(key(1, "one"), 2) == expected[0][2]
    assert (counters == before).all() and bases.tolist() == [key(1, "one"), key(2, "two")]


def test_numbers_from_hashes():
    hashes = np.array([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1], dtype=np.uint64)
    assert random_integers(hashes, 10).tolist() == [0, 0, 0, 5, 9]
    assert random_integers(hashes, np.array([1, 2, 2**32 - 1, 3, 2**32 - 1])).tolist() == [0, 0, 0, 1, 2**32 - 2]
    assert uniform(hashes).tolist() == [0, (2**21 - 1) / 2**53, 2**-32, 0.5, 1 - 2**-53]
    assert hashes.tolist() == [0, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
