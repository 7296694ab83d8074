"""How often the chunks of each source are seen in an epoch, as arithmetic over sequence indices."""

import numpy as np

from framework import ragged


class Mixture:
    """Maps sequence indices of an epoch to chunks: source after source, each as often as its weight says.

    A source of weight 2 is seen twice in every epoch; of one of weight 0.5 each epoch sees half, and two epochs all. A
    part of a chunk that is left over is rounded, so that each epoch has equally many sequences.

    Args:
        sizes: (sources,) chunks of each source, in the order in which they lie.
        weights: (sources,) not negative, their products with the sizes not all below one half.
    """

    def __init__(self, sizes: np.ndarray, weights: np.ndarray) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._seen = np.floor(np.asarray(weights, dtype=np.float64) * self._sizes + 0.5).astype(np.int64)
        self._first_chunks = ragged.starts(self._sizes)
        self._ends = np.cumsum(self._seen)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def chunks(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The chunk of each sequence.

        Args:
            epochs: (sequences,) int64.
            indices: (sequences,) int64 in [0, len).

        Returns:
            (sequences,) int64 in [0, sum of sizes).
        """
        source = np.searchsorted(self._ends, indices, side="right")
        seen = self._seen[source]
        place = epochs * seen + indices - (self._ends[source] - seen)
        return self._first_chunks[source] + place % self._sizes[source]
