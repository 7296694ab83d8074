"""A training split with augmented texts: the same items, with edited tokens and exact lengths for the plan."""

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.augmentation.edits import Augmentation
from framework.data.flat_source import FlatSource, FlatTokens
from framework.data.planning.collate import Shape
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import key, mix


class AugmentedSource:
    """Items of a source, edited by an augmentation (`framework.data.planning.plan.SequenceSource`).

    A hash of seed, variant of the epoch, item, sequence within the item and position decides the edit of each token. It
    depends on no rank, worker or step, so a resumed run sees the same texts as an uninterrupted one.

    Args:
        source: Source to augment; its targets must belong to sequences, not tokens.
        augmentation: Method of changing tokens.
        tokenizer: Tokenizer whose special tokens are not edited.
        seed: Seed of the run.

    Attributes:
        source: Source as given.
        augmentation: Augmentation as given.
        max_length: Largest number of tokens of an item of the source; no sequence becomes longer.
        max_sequence_length: Largest number of tokens of a sequence of the source.
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
        """Returns the fingerprint of the source; the config determines the rest."""
        return self.source.fingerprint

    @property
    def mean_length(self) -> float:
        """Returns the mean length of the source; deletions make the texts slightly shorter."""
        return self.source.mean_length

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing: everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (items,) int64, the number of tokens of each item after the edits of its epoch."""
        tokens = self.edited(epochs, indices)
        ends = ragged.bounds(tokens.lengths)
        last = np.cumsum(tokens.sizes)
        return ends[last] - ends[last - tokens.sizes]

    def build(
        self,
        epochs: np.ndarray,
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,  # noqa: ARG002  only the epoch matters: within it, a text is the same at every step
        shape: Shape = None,
    ) -> PackedBatch:
        """Builds one micro-batch of augmented items."""
        return self.source.pack(indices, self.edited(epochs, indices), sequence_ids, shape)

    def edited(self, epochs: np.ndarray, indices: np.ndarray) -> FlatTokens:
        """Returns the edited tokens of items in their epochs."""
        tokens = self.source.tokens(indices)
        variants = self.augmentation.variants(np.asarray(epochs))
        keys = self.keys(variants, indices, tokens)
        return self.augmentation.edit(tokens, self.is_editable(tokens), keys, np.repeat(variants, tokens.sizes))

    def keys(self, variants: np.ndarray, indices: np.ndarray, tokens: FlatTokens) -> np.ndarray:
        """Returns (sequences,) uint64, a random key for each sequence.

        Args:
            variants: (items,) variant of each item.
            indices: (items,) index of each item in the source.
            tokens: Tokens of these items.
        """
        item_keys = mix(mix(self._key, variants), indices)
        return mix(np.repeat(item_keys, tokens.sizes), ragged.offsets_within(tokens.sizes))

    def is_editable(self, tokens: FlatTokens) -> np.ndarray:
        """Returns (tokens,) bool, False for special tokens."""
        return ~self._is_special[tokens.input_ids]
