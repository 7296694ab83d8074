"""Order of an epoch: a stateless bijection of [0, size), computed for any set of positions at any size.

The bijection is a Feistel network over Z_a x Z_b with additions modulo a and b (Black and Rogaway 2002, "Ciphers with
arbitrary finite domains", section 4). Cycle walking skips the few values beyond `size`: a * b < size + 2 * sqrt(size) +
1. It needs no memory and no state. `Shuffle` permutes all sequences at once, or in two levels for stores that are
larger than the memory. `BalancedShuffle` draws the same number of sequences from each group.
"""

import math
from dataclasses import dataclass

import numpy as np

from framework.errors import check_at_least
from framework.random import key, mix, random_integers

NUM_ROUNDS = 8
SMALL_SIZE = 100
NUM_ROUNDS_SMALL = 24
"""Rounds below SMALL_SIZE, where the halves have few values and a round mixes little. In a chi-square test over 400,000
keys, pairs of indices failed with 8 rounds up to size 50, and with 16 rounds at size 6. With the numbers chosen here,
none failed from size 3 on."""


def permute(order_key: int, size: int, positions: np.ndarray) -> np.ndarray:
    """Maps positions in an epoch's order to sequence indices; a bijection of [0, size) for each key.

    Args:
        order_key: 64-bit key of this order, from `framework.random.key`.
        size: Number of sequences, at least 1 and below 2**62.
        positions: Array of any shape with positions in [0, size).

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
        raise ValueError(f"positions range from {positions.min()} to {positions.max()}, not within 0 to {size - 1}.")
    return positions


def _feistel(round_keys: list[int], rows: int, columns: int, values: np.ndarray) -> np.ndarray:
    """Permutes [0, rows * columns): each round adds a hash of one half to the other half, in turns."""
    row, column = np.divmod(values, columns)
    for number, round_key in enumerate(round_keys):
        if number % 2 == 0:
            row += random_integers(mix(round_key, column), rows)
            # Modulo by subtraction, since both operands were below `rows`; a division costs more.
            row -= rows * (row >= rows)
        else:
            column += random_integers(mix(round_key, row), columns)
            column -= columns * (column >= columns)
    return row * columns + column


@dataclass(frozen=True)
class Shuffle:
    """Random order of an epoch, over all indices at once or in two levels.

    With two levels, blocks of consecutive indices are shuffled, this stream of blocks is cut into windows, and each
    window is shuffled. At any time an epoch therefore reads from only `window_blocks` blocks, which fit in the page
    cache. Two distant indices share a window only if their blocks do.

    Attributes:
        block_size: Consecutive indices that stay in one window; the last block may have fewer. None shuffles all
            indices at once.
        window_blocks: Blocks of a window; the last window may have fewer.

    Raises:
        ConfigError: One of the two numbers is below 1.
    """

    block_size: int | None = None
    window_blocks: int = 64

    def __post_init__(self) -> None:
        for name, value in (("block_size", self.block_size), ("window_blocks", self.window_blocks)):
            if value is not None:
                check_at_least(f"the shuffle's {name}", value, 1)

    def indices(self, order_key: int, size: int, positions: np.ndarray) -> np.ndarray:
        """Maps positions in an epoch's order to sequence indices; a bijection of [0, size) for each key.

        Time and memory depend on the number of positions only, not on the size. A call is fastest if the positions lie
        in few windows.

        Args:
            order_key: 64-bit key of this order, from `framework.random.key`.
            size: Number of sequences, at least 1 and below 2**62.
            positions: Array of any shape with positions in [0, size).

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
        for in_window in np.split(by_window, ends[:-1]):
            if len(in_window):
                window = int(windows[in_window[0]])
                start, stop = (blocks.start((window + end) * self.window_blocks) for end in (0, 1))
                window_key = key(order_key, "window", window)
                shuffled[in_window] = start + permute(window_key, stop - start, flat[in_window] - start)
        slots, offsets = blocks.locate(shuffled)
        return (blocks.numbers(slots) * self.block_size + offsets).reshape(positions.shape)

    def for_steps(self, global_batch_size: int) -> "Shuffle":  # noqa: ARG002  the order does not depend on steps
        """Returns the order for steps of this size."""
        return self

    def mean(self, values: np.ndarray) -> float:
        """Returns the mean of the values (sequences,) over an epoch."""
        return float(values.mean())

    def window(self, order_key: int, size: int, position: int) -> np.ndarray:
        """Returns the index ranges of the window that contains a position in an epoch's order.

        Args:
            order_key: 64-bit key of this order, as for `indices`.
            size: Number of sequences.
            position: Position in [0, size).

        Returns:
            (blocks, 2) int64 ascending ranges (start, stop) of the indices in the window of that position.
        """
        if self.block_size is None:
            return np.array([[0, size]])
        blocks = _BlockOrder(order_key, size, self.block_size)
        first = int(blocks.locate(_within(size, np.array([position])))[0][0]) // self.window_blocks * self.window_blocks
        last = min(first + self.window_blocks, blocks.num_blocks)
        starts = np.sort(blocks.numbers(np.arange(first, last))) * self.block_size
        return np.stack([starts, np.minimum(starts + self.block_size, size)], axis=1)


@dataclass(frozen=True, eq=False)
class BalancedShuffle(Shuffle):
    """Random order of an epoch in which all groups have the same number of sequences, or one more.

    An epoch is as long as without groups. A group that is larger than its share contributes a random part to each
    epoch. Of a smaller group all sequences are repeated, so that two of its sequences differ by at most one repetition.

    Attributes:
        groups: Indices of the sequences of each group, no group empty, together those of the source.
    """

    groups: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, groups: np.ndarray) -> "BalancedShuffle":
        """Returns the order for the group of each sequence (sequences,); groups without sequences are left out."""
        return cls(groups=tuple(np.flatnonzero(groups == group) for group in np.unique(groups)))

    def indices(self, order_key: int, size: int, positions: np.ndarray) -> np.ndarray:
        """Maps positions in an epoch's order to sequence indices; a position has the same index for the same key."""
        slots = permute(order_key, size, positions)
        ends = np.arange(1, len(self.groups) + 1) * size // len(self.groups)
        owners = np.searchsorted(ends, slots, side="right")
        indices = np.empty_like(slots)
        for number, members in enumerate(self.groups):
            own = owners == number
            offsets = slots[own] - (ends[number - 1] if number else 0)
            order = permute(key(order_key, "group", number), len(members), offsets % len(members))
            indices[own] = members[order]
        return indices

    def mean(self, values: np.ndarray) -> float:
        """Returns the mean over groups of the mean of each."""
        return float(np.mean([values[members].mean() for members in self.groups]))


class _BlockOrder:
    """Stream of shuffled blocks: start and number of the block in each slot of the stream.

    A last block with fewer indices gets a random slot of its own, and the others are permuted around it. The start of
    each slot is therefore computed without a search.
    """

    def __init__(self, order_key: int, size: int, block_size: int) -> None:
        self._key = key(order_key, "blocks")
        self._size = size
        self._block_size = block_size
        self._num_full, rest = divmod(size, block_size)
        self.num_blocks = self._num_full + (rest > 0)
        self._missing = (block_size - rest) if rest else 0
        # After all blocks if no block is short.
        self._short_slot = key(order_key, "short block") % self.num_blocks if rest else self.num_blocks

    def start(self, slot: int) -> int:
        """Returns the position in the stream at which a slot begins; the end of the stream for slots after the last."""
        return min(slot * self._block_size - self._missing * (slot > self._short_slot), self._size)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the slot of each position in the stream, and the offset within its block."""
        behind = positions >= self.start(self._short_slot + 1)
        return np.divmod(positions + self._missing * behind, self._block_size)

    def numbers(self, slots: np.ndarray) -> np.ndarray:
        """Returns the number of the block in each slot."""
        result = np.full_like(slots, self._num_full)
        full = slots != self._short_slot
        others = slots[full]
        if len(others):
            result[full] = permute(self._key, self._num_full, others - (others > self._short_slot))
        return result
