"""A training split whose texts are augmented: the same items, with lengths that the plan knows exactly."""

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.augmentation.edits import Augmentation
from framework.data.flat_source import FlatSource, FlatTokens
from framework.data.planning.collate import Shape
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import key, mix


class AugmentedSource:
    """The items of a source, changed by an augmentation (`framework.data.planning.plan.SequenceSource`).

    What becomes of a token is a hash of seed, variant of the epoch, item, sequence of the item and position: it depends
    on no rank, worker or step, and a run that goes on gets what it would have got.

    Args:
        source: What is augmented; its targets must be those of sequences.
        augmentation: How.
        tokenizer: Knows the special tokens, which stay as they are.
        seed: Of the run.

    Attributes:
        source: As given, as is `augmentation`.
        max_length: Of the source, as are the other bounds: no sequence becomes longer.
    """

    def __init__(self, source: FlatSource, augmentation: Augmentation, tokenizer: Tokenizer, seed: int) -> None:
        self.source = source
        self.augmentation = augmentation
        self.max_length = source.max_length
        self.max_sequence_length = source.max_sequence_length
        self.group_size = source.group_size
        self.shuffle = source.shuffle
        self.records = source.records
        self.facts = source.facts
        self._key = key(seed, "augmentation")
        self._is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self._is_special[tokenizer.special_ids] = True

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """Of the source: the rest is in the config."""
        return self.source.fingerprint

    @property
    def mean_length(self) -> float:
        """Of the source: what is deleted makes the texts a little shorter."""
        return self.source.mean_length

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Nothing is to be read, everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(items,) int64 tokens of each as they come in that epoch."""
        tokens = self.edited(epochs, indices)
        ends = ragged.bounds(tokens.lengths)
        last = np.cumsum(tokens.sizes)
        return ends[last] - ends[last - tokens.sizes]

    def build(
        self,
        epochs: np.ndarray,
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,  # noqa: ARG002  the epoch decides, so that a text is the same wherever in it it stands
        shape: Shape = None,
    ) -> PackedBatch:
        """One micro-batch of augmented items."""
        return self.source.pack(indices, self.edited(epochs, indices), sequence_ids, shape)

    def edited(self, epochs: np.ndarray, indices: np.ndarray) -> FlatTokens:
        """The tokens of items in their epochs."""
        tokens = self.source.tokens(indices)
        variants = self.augmentation.variants(np.asarray(epochs))
        keys = self.keys(variants, indices, tokens)
        return self.augmentation.edit(tokens, self.is_touchable(tokens), keys, np.repeat(variants, tokens.sizes))

    def keys(self, variants: np.ndarray, indices: np.ndarray, tokens: FlatTokens) -> np.ndarray:
        """(sequences,) uint64 of items: (items,) variants and indices."""
        of_items = mix(mix(self._key, variants), indices)
        return mix(np.repeat(of_items, tokens.sizes), ragged.offsets_within(tokens.sizes))

    def is_touchable(self, tokens: FlatTokens) -> np.ndarray:
        """(tokens,) False for special tokens."""
        return ~self._is_special[tokens.input_ids]
