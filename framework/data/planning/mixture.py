"""Repetition of the chunks of each source within an epoch, as arithmetic over sequence indices."""

import numpy as np

from framework import ragged


class Mixture:
    """Maps sequence indices of an epoch to chunks, one source after the other, each repeated by its weight.

    An epoch contains a source of weight 2 twice. It contains half of a source of weight 0.5, and two epochs contain all
    of that source. A fractional number of chunks is rounded, so that every epoch has the same number of sequences.

    Args:
        sizes: (sources,) chunks of each source, in the order of the store.
        weights: (sources,) weights, not negative; at least one product of a weight and a size must be one half or more.
    """

    def __init__(self, sizes: np.ndarray, weights: np.ndarray) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._seen = np.floor(np.asarray(weights, dtype=np.float64) * self._sizes + 0.5).astype(np.int64)
        self._first_chunks = ragged.starts(self._sizes)
        self._ends = np.cumsum(self._seen)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def is_plain(self) -> bool:
        """Returns True if each epoch has each chunk once, in the order of the chunks."""
        return bool((self._seen == self._sizes).all())

    def chunks(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns the chunk of each sequence.

        Args:
            epochs: (sequences,) int64 epoch of each sequence.
            indices: (sequences,) int64 index of each sequence in its epoch, in [0, len).

        Returns:
            (sequences,) int64 chunk indices in [0, sum of sizes).
        """
        source = np.searchsorted(self._ends, indices, side="right")
        seen = self._seen[source]
        offset = epochs * seen + indices - (self._ends[source] - seen)
        return self._first_chunks[source] + offset % self._sizes[source]
