"""A training split with augmented texts: the same items, with edited tokens and exact lengths for the plan."""

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.augmentation.edits import Augmentation
from framework.data.flat_source import DerivedSource, FlatSource, FlatTokens
from framework.data.planning.collate import Shape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import key, mix


class AugmentedSource(DerivedSource):
    """Items of a source, edited by an augmentation (`framework.data.planning.plan.SequenceSource`).

    A hash of seed, variant of the epoch, item, sequence within the item and position decides the edit of each token. It
    depends on no rank, worker or step, so a resumed run sees the same texts as an uninterrupted one.

    Args:
        source: Source to augment; its targets must belong to sequences, not tokens.
        augmentation: Method of changing tokens.
        tokenizer: Tokenizer whose special tokens are not edited.
        seed: Seed of the run.

    Attributes:
        augmentation: Augmentation as given. No sequence becomes longer, and deletions make texts slightly shorter than
            the lengths of the source.
    """

    def __init__(self, source: FlatSource, augmentation: Augmentation, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(source)
        self.augmentation = augmentation
        self._key = key(seed, "augmentation")
        self._is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self._is_special[tokenizer.special_ids] = True

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (items,) int64, the number of tokens of each item after the edits of its epoch."""
        tokens = self.edited(epochs, indices)
        ends = ragged.bounds(tokens.lengths)
        last = np.cumsum(tokens.sizes)
        return ends[last] - ends[last - tokens.sizes]

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:  # noqa: ARG002  the same at every step
        """Builds one micro-batch of augmented items."""
        return self.source.pack(sequences, self.edited(sequences.epochs, sequences.indices), shape)

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
