"""A training split whose texts are rewritten and tokenised again in each epoch, with exact lengths for the plan.

The loader of a rank tokenises the texts of a whole global step once, because the plan needs all lengths of the step,
and packs its share from the result.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from framework.batch import PackedBatch
from framework.data.flat_source import DerivedSource, FlatSource
from framework.data.layout import lay_out
from framework.data.planning.collate import Shape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import key, mix


class TextAugmentation(ABC):
    """One method of changing texts before they are tokenised."""

    @property
    def fingerprint(self) -> str:
        """Identifies files that the augmentation has read; empty if there are none."""
        return ""

    @abstractmethod
    def rewrite(self, texts: Sequence[str], keys: np.ndarray) -> list[str]:
        """Returns the rewritten texts, none of them blank.

        Args:
            texts: Texts as in the data.
            keys: (texts,) uint64, random key of the row of each text, different in each epoch. Texts of one row have
                the same key.
        """

    def check(self, texts: Sequence[pa.Array]) -> None:  # noqa: B027  most methods change any text
        """Checks that the method can change the training texts.

        Args:
            texts: Arrays of `FlatSource.texts`.

        Raises:
            ConfigError: It would change none of them.
        """


class RewrittenSource(DerivedSource):
    """Items of a source with rewritten texts (`framework.data.planning.plan.SequenceSource`).

    A hash of seed, epoch and item decides the changes of each text. It depends on no rank, worker or step, so a resumed
    run sees the same texts as an uninterrupted one.

    Args:
        source: Source that keeps its texts; its targets must belong to sequences, not tokens.
        augmentation: Method of changing texts.
        tokenizer: Tokenizer of the source.
        seed: Seed of the run.

    Raises:
        ConfigError: The augmentation would change no text.
    """

    def __init__(self, source: FlatSource, augmentation: TextAugmentation, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(source)
        assert source.texts is not None
        augmentation.check(source.texts)
        self.augmentation = augmentation
        self.max_length = source.group_size * source.max_sequence_length
        self._texts = source.texts
        self._tokenizer = tokenizer
        self._key = key(seed, "augmentation")
        # The last rewritten items: a source of them, and the index in it by epoch and item.
        self._rewritten = source
        self._positions: dict[tuple[int, int], int] = {}

    @property
    def fingerprint(self) -> str:
        """Combines the fingerprints of the source and of the augmentation; the config determines the rest."""
        if not self.augmentation.fingerprint:
            return self.source.fingerprint
        parts = (self.source.fingerprint + self.augmentation.fingerprint).encode()
        return hashlib.blake2b(parts, digest_size=16).hexdigest()

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (items,) int64, the number of tokens of each item after its text was rewritten."""
        rewritten, positions = self._find(epochs, indices)
        return rewritten.lengths(epochs, positions)

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch of rewritten items."""
        rewritten, positions = self._find(sequences.epochs, sequences.indices)
        return rewritten.build(StepSequences(sequences.epochs, positions, sequences.sequence_ids), step, shape)

    def _find(self, epochs: np.ndarray, indices: np.ndarray) -> tuple[FlatSource, np.ndarray]:
        """Returns a source that contains the rewritten items, and the index of each item in it."""
        names = list(zip(epochs.tolist(), indices.tolist(), strict=True))
        if not all(name in self._positions for name in names):
            self._rewritten = self._rewrite(epochs, indices)
            self._positions = {name: position for position, name in enumerate(names)}
        return self._rewritten, np.array([self._positions[name] for name in names], dtype=np.int64)

    def _rewrite(self, epochs: np.ndarray, indices: np.ndarray) -> FlatSource:
        rows, sizes = self.source.sequences_of(indices)
        keys = np.repeat(mix(mix(self._key, epochs), indices), sizes)
        texts = (array.take(pa.array(rows)).to_pylist() for array in self._texts)
        first, *second = (self.augmentation.rewrite(each, keys) for each in texts)
        layout = lay_out(first, second[0] if second else None, self._tokenizer, self.max_sequence_length)
        return self.source.with_tokens(indices, layout.input_ids, layout.lengths, layout.token_type_ids)
