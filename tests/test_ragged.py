"""Arithmetic of ragged arrays compared with values computed by hand."""

import numpy as np
import pytest

from framework import ragged

LENGTHS = np.array([2, 0, 3], dtype=np.int32)


def test_starts_and_bounds():
    assert ragged.starts(LENGTHS).tolist() == [0, 2, 2]
    assert ragged.bounds(LENGTHS).tolist() == [0, 2, 2, 5]


def test_ranges():
    assert ragged.ranges(np.array([10, 20, 30]), LENGTHS).tolist() == [10, 11, 30, 31, 32]
    assert ragged.offsets_within(LENGTHS).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("function", [ragged.starts, ragged.offsets_within])
def test_no_rows_give_no_elements(function):
    result = function(np.zeros(0, dtype=np.int64))
    assert result.dtype == np.int64 and result.shape == (0,)
