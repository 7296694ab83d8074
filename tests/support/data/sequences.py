"""Source without text: lengths come from a hash, and every token identifies its sequence and epoch."""

import numpy as np

from framework.batch import PackedBatch
from framework.data.planning.collate import FixedShape, Target, pack_sequences
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import StepSequences
from framework.random import mix, random_integers

SHIFT = 1000


class NumberedSource:
    """Source in which sequence `i` of epoch `e` consists of `length` tokens `e * 1000 + i`."""

    def __init__(self, size: int, max_length: int = 20, same_length: bool = False) -> None:
        self.size, self.max_length, self.same_length = size, max_length, same_length

    @property
    def shuffle(self) -> Shuffle:
        return Shuffle()

    @property
    def fingerprint(self) -> str:
        return f"{self.size} {self.max_length} {self.same_length}"

    @property
    def mean_length(self) -> float:
        return float(self.lengths(np.zeros(self.size, dtype=np.int64), np.arange(self.size)).mean())

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing, since the source reads no files."""

    def __len__(self) -> int:
        return self.size

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        if self.same_length:
            return np.full(len(indices), self.max_length)
        return 1 + random_integers(mix(mix(17, epochs), indices), self.max_length)

    def build(self, sequences: StepSequences, step: int, shape: FixedShape | None = None) -> PackedBatch:
        epochs, indices = sequences.epochs, sequences.indices
        lengths = self.lengths(epochs, indices)
        tokens = np.repeat(epochs * SHIFT + indices, lengths)
        labels = Target(epochs * SHIFT + indices, "sequences")
        counts = {"label": float(len(indices))}
        return pack_sequences(tokens, lengths, sequences.sequence_ids, None, {"labels": labels}, counts, shape)
