"""Arithmetic of ragged arrays: rows of different lengths that are stored end to end in one flat array."""

import numpy as np
from numpy.typing import NDArray


def starts(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns the index of each row's first element in the flat array.

    Args:
        lengths: (rows,) number of elements of each row.
    """
    return np.cumsum(lengths) - lengths


def bounds(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns (rows + 1,) the index of each row's first element, followed by the total length."""
    return np.concatenate([[0], np.cumsum(lengths)])


def ranges(firsts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns first, first + 1, ..., first + length - 1 of each row, end to end.

    Args:
        firsts: (rows,) first number of each row.
        lengths: (rows,) number of elements of each row.
    """
    return np.repeat(firsts - starts(lengths), lengths) + np.arange(int(lengths.sum()), dtype=np.int64)


def offsets_within(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns the offset of each element within its row: 0, 1, ..., length - 1 for each row, end to end."""
    return ranges(np.zeros_like(lengths), lengths)
