"""The order of an epoch: a stateless bijection of [0, size) that is computed for any positions at once, at any size.

A Feistel network over Z_a x Z_b with additions modulo a and b (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains", section 4) and cycle walking over the few values beyond `size`: a * b < size + 2 * sqrt(size) + 1. No memory,
no state. `Shuffle` orders all sequences alike, or in two levels, for stores that are larger than the memory.
"""

import math
from dataclasses import dataclass

import numpy as np

from framework.errors import ConfigError
from framework.random import below, key, mix

NUM_ROUNDS = 8
SMALL_SIZE = 100
NUM_ROUNDS_SMALL = 24
"""Below SMALL_SIZE the halves have few values, so that a round mixes little: pairs of indices failed a chi-square test
over 400,000 keys with 8 rounds up to size 50, and with 16 rounds at size 6; with the numbers here none did from size 3
on."""


def permute(order_key: int, size: int, positions: np.ndarray) -> np.ndarray:
    """Maps places in an epoch's order to sequence indices; a bijection of [0, size) for each key.

    Args:
        order_key: 64-bit key of this order, from `framework.random.key`.
        size: Number of sequences, at least 1 and below 2**62.
        positions: Places of any shape, each in [0, size).

    Returns:
        int64 indices of the same shape, each in [0, size).
    """
    positions = _within(size, positions)
    if size == 1:
        return np.zeros_like(positions)
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    num_rounds = NUM_ROUNDS if size >= SMALL_SIZE else NUM_ROUNDS_SMALL
    round_keys = [key(order_key, "feistel", number) for number in range(num_rounds)]
    result = positions.reshape(-1).copy()
    walking = np.arange(result.size)
    while walking.size:
        result[walking] = _feistel(round_keys, rows, columns, result[walking])
        walking = walking[result[walking] >= size]
    return result.reshape(positions.shape)


def _within(size: int, positions: np.ndarray) -> np.ndarray:
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise ValueError(f"positions reach from {positions.min()} to {positions.max()}, not within 0 to {size - 1}.")
    return positions


def _feistel(round_keys: list[int], rows: int, columns: int, values: np.ndarray) -> np.ndarray:
    """One pass over [0, rows * columns): rounds add a hash of one half to the other half, in turns."""
    row, column = np.divmod(values, columns)
    for number, round_key in enumerate(round_keys):
        if number % 2 == 0:
            row += below(mix(round_key, column), rows)
            # Modulo, since both were below it; a division costs more.
            row -= rows * (row >= rows)
        else:
            column += below(mix(round_key, row), columns)
            column -= columns * (column >= columns)
    return row * columns + column


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is put in order.

    In two levels, blocks of consecutive indices come in random order, this stream of blocks is cut into windows, and
    each window is put in random order. So at any time an epoch reads from `window_blocks` blocks only, which the page
    cache holds; two indices that are far apart meet in a window only if their blocks do.

    Attributes:
        block_size: Consecutive indices that stay in one window, the last block may have fewer; None puts all indices in
            random order at once.
        window_blocks: Blocks of a window; the last window may have fewer.

    Raises:
        ConfigError: One of them is below 1.
    """

    block_size: int | None = None
    window_blocks: int = 64

    def __post_init__(self) -> None:
        for name, value in (("block_size", self.block_size), ("window_blocks", self.window_blocks)):
            if value is not None and value < 1:
                raise ConfigError(f"the shuffle's {name} is {value}, it must be at least 1.")

    def indices(self, order_key: int, size: int, positions: np.ndarray) -> np.ndarray:
        """Maps places in an epoch's order to sequence indices; a bijection of [0, size) for each key.

        Time and memory are those of the positions, whatever the size; a call is fastest if they lie in few windows.

        Args:
            order_key: 64-bit key of this order, from `framework.random.key`.
            size: Number of sequences, at least 1 and below 2**62.
            positions: Places of any shape, each in [0, size).

        Returns:
            int64 indices of the same shape, each in [0, size).
        """
        if self.block_size is None:
            return permute(order_key, size, positions)
        positions = _within(size, positions)
        blocks = _BlockOrder(order_key, size, self.block_size)
        flat = positions.ravel()
        windows = blocks.locate(flat)[0] // self.window_blocks
        by_window = np.argsort(windows, kind="stable")
        ends = np.flatnonzero(np.diff(windows[by_window], append=-1)) + 1
        shuffled = np.empty_like(flat)
        for here in np.split(by_window, ends[:-1]):
            if len(here):
                window = int(windows[here[0]])
                start, stop = (blocks.start((window + end) * self.window_blocks) for end in (0, 1))
                window_key = key(order_key, "window", window)
                shuffled[here] = start + permute(window_key, stop - start, flat[here] - start)
        places, offsets = blocks.locate(shuffled)
        return (blocks.numbers(places) * self.block_size + offsets).reshape(positions.shape)

    def window(self, order_key: int, size: int, position: int) -> np.ndarray:
        """What is read around a place in an epoch's order.

        Args:
            order_key: Of this order, as for `indices`.
            size: Number of sequences.
            position: A place in [0, size).

        Returns:
            (blocks, 2) int64 ranges (start, stop) of the indices in the window of that place, ascending.
        """
        if self.block_size is None:
            return np.array([[0, size]])
        blocks = _BlockOrder(order_key, size, self.block_size)
        first = int(blocks.locate(_within(size, np.array([position])))[0][0]) // self.window_blocks * self.window_blocks
        last = min(first + self.window_blocks, blocks.num_blocks)
        starts = np.sort(blocks.numbers(np.arange(first, last))) * self.block_size
        return np.stack([starts, np.minimum(starts + self.block_size, size)], axis=1)


class _BlockOrder:
    """Blocks in random order, end to end: where each lies in this stream, and which it is.

    A last block with fewer indices gets a random place of its own; the others are permuted around it. So where they
    begin needs no search.
    """

    def __init__(self, order_key: int, size: int, block_size: int) -> None:
        self._key = key(order_key, "blocks")
        self._size = size
        self._block_size = block_size
        self._num_full, rest = divmod(size, block_size)
        self.num_blocks = self._num_full + (rest > 0)
        self._missing = (block_size - rest) if rest else 0
        # Behind all blocks if there is none.
        self._short_place = key(order_key, "short block") % self.num_blocks if rest else self.num_blocks

    def start(self, place: int) -> int:
        """Where the block at this place begins in the stream; the end of the stream for places behind all blocks."""
        return min(place * self._block_size - self._missing * (place > self._short_place), self._size)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For positions in the stream: the place of the block, and how far into the block."""
        behind = positions >= self.start(self._short_place + 1)
        return np.divmod(positions + self._missing * behind, self._block_size)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """The blocks at these places."""
        result = np.full_like(places, self._num_full)
        full = places != self._short_place
        others = places[full]
        if len(others):
            result[full] = permute(self._key, self._num_full, others - (others > self._short_place))
        return result
