import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.planning.mixture import Mixture


def epoch_of(mixture: Mixture, epoch: int) -> list[int]:
    indices = np.arange(len(mixture))
    return mixture.chunks(np.full(len(indices), epoch), indices).tolist()


def test_by_hand():
    # Three sources of 2, 4 and 3 chunks: twice, half, once.
    mixture = Mixture(np.array([2, 4, 3]), np.array([2.0, 0.5, 1.0]))
    assert len(mixture) == 9
    assert epoch_of(mixture, 0) == [0, 1, 0, 1, 2, 3, 6, 7, 8]
    assert epoch_of(mixture, 1) == [0, 1, 0, 1, 4, 5, 6, 7, 8]
    assert epoch_of(mixture, 2) == epoch_of(mixture, 0)


def test_a_source_with_weight_zero_is_omitted():
    mixture = Mixture(np.array([2, 4]), np.array([0.0, 1.0]))
    assert epoch_of(mixture, 5) == [2, 3, 4, 5]


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([0.25, 0.3, 0.5, 1.0, 1.5, 2.0, 3.7])), min_size=1, max_size=4
    )
)
def test_over_many_epochs_chunks_of_a_source_are_seen_equally_often(parts):
    sizes, weights = np.array([size for size, _ in parts]), np.array([weight for _, weight in parts])
    mixture = Mixture(sizes, weights)
    counts = np.zeros(sizes.sum(), dtype=np.int64)
    for epoch in range(40):
        chunks = epoch_of(mixture, epoch)
        counts += np.bincount(chunks, minlength=len(counts))
        # Within an epoch no chunk is seen more than once more often than another of its source.
        seen = np.bincount(chunks, minlength=len(counts))
        for first, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
            assert np.ptp(seen[first : first + size]) <= 1
    for first, size, weight in zip(np.cumsum(sizes) - sizes, sizes, weights, strict=True):
        assert np.ptp(counts[first : first + size]) <= 1
        assert counts[first : first + size].mean() == pytest.approx(40 * weight, abs=40 * 0.501 / size)
