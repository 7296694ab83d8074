"""Edits the tokens of a sequence: deletes some, swaps some, or replaces some by other words.

Each edit is a function of the tokens and of one key per sequence. An independent draw for each position decides which
tokens are edited. (Wei, Zou 2019, "EDA", arXiv:1901.11196, draw words, and a fixed number of them.) Special tokens are
never edited. They delimit the texts of a sequence: no text loses all of its tokens, and no token moves to another text.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np

from framework import ragged
from framework.data.flat_source import FlatTokens
from framework.errors import check_above_zero, check_at_least, check_open_fraction
from framework.random import mix, uniform

_CHOICE, _ORDER = -1, -2
"""Counters that are mixed with a sequence's key; the position of a token is mixed with the result."""


class Augmentation(ABC):
    """One method of changing tokens.

    Args:
        rate: Expected share of the tokens that are edited.

    Raises:
        ConfigError: `rate` is not above 0 and below 1.
    """

    def __init__(self, rate: float) -> None:
        check_open_fraction("augmentation.rate", rate, "Choose for example 0.1.")
        self.rate = rate

    def variants(self, epochs: np.ndarray) -> np.ndarray:
        """Returns (items,) int64, the variant of each epoch; epochs with the same variant have the same edits."""
        return epochs

    @abstractmethod
    def edit(self, tokens: FlatTokens, is_editable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """Returns the edited tokens; no sequence becomes longer or empty.

        Args:
            tokens: Tokens as they are in the source.
            is_editable: (tokens,) bool, False for special tokens.
            keys: (sequences,) uint64, random key of each sequence, different in each variant.
            variants: (sequences,) variant of each sequence, as `variants` returns it.
        """


class Delete(Augmentation):
    """Deletes tokens; if all tokens of a text would be deleted, the one with the largest draw is kept."""

    def edit(self, tokens: FlatTokens, is_editable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """Returns the tokens that are kept, in their order."""
        draws = draws_of(tokens.lengths, keys, _CHOICE)
        is_kept = ~is_editable | (draws >= self.rate)
        editable = np.flatnonzero(is_editable)
        if len(editable):
            begins = np.flatnonzero(np.diff(texts_of(tokens.lengths, is_editable)[editable], prepend=-1))
            largest = np.maximum.reduceat(draws[editable], begins)
            is_kept[editable] |= draws[editable] == np.repeat(largest, np.diff(begins, append=len(editable)))
        rows = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
        lengths = np.bincount(rows[is_kept], minlength=len(tokens.lengths)).astype(np.int64)
        return replace(
            tokens, input_ids=tokens.input_ids[is_kept], token_indices=tokens.token_indices[is_kept], lengths=lengths
        )


class Swap(Augmentation):
    """Permutes the chosen tokens of each text randomly."""

    def edit(self, tokens: FlatTokens, is_editable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """Returns the same tokens in another order."""
        chosen = np.flatnonzero(chosen_tokens(tokens.lengths, is_editable, keys, self.rate))
        texts = texts_of(tokens.lengths, is_editable)[chosen]
        order = np.lexsort((draws_of(tokens.lengths, keys, _ORDER)[chosen], texts))
        source = np.arange(len(tokens.token_indices))
        source[chosen] = chosen[order]
        return replace(tokens, input_ids=tokens.input_ids[source], token_indices=tokens.token_indices[source])


class Replace(Augmentation):
    """Replaces tokens by words that the model predicts at their position (Kobayashi 2018, arXiv:1805.06201).

    The replacements are sampled before training begins (`framework.modules.word_samples`), from the predictions of the
    masked-language-modelling head of the initial weights. There are `num_variants` variants, and the epochs cycle
    through them. The paper also conditions the words on the label, and masks one word at a time. Here all chosen tokens
    are masked at once and the model does not know the label, so a replacement may contradict the label.

    Args:
        rate: Expected share of the tokens that are resampled; a sample may equal the original token.
        num_variants: Number of variants of the texts; each costs one forward pass over them in fp32.
        temperature: Divisor of the logits; values above 1 give more varied words.

    Attributes:
        samples: (variants, tokens) ids of all tokens of the source in each variant; None until they are sampled.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(self, rate: float, num_variants: int = 4, temperature: float = 1.0) -> None:
        super().__init__(rate)
        check_at_least("augmentation.num_variants", num_variants, 1)
        check_above_zero("augmentation.temperature", temperature, 1)
        self.num_variants = num_variants
        self.temperature = temperature
        self.samples: np.ndarray | None = None

    def variants(self, epochs: np.ndarray) -> np.ndarray:
        """Returns the variant of each epoch; the epochs cycle through the variants."""
        return epochs % self.num_variants

    def edit(self, tokens: FlatTokens, is_editable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """Returns the tokens with the ids of the variant."""
        if self.samples is None:
            raise RuntimeError(
                "the replacement words are not sampled yet. Sampling must precede the first batch. Set `samples`."
            )
        return replace(tokens, input_ids=self.samples[np.repeat(variants, tokens.lengths), tokens.token_indices])


def draws_of(lengths: np.ndarray, keys: np.ndarray, purpose: int) -> np.ndarray:
    """Returns (tokens,) float64 in [0, 1), a random number for each position.

    Args:
        lengths: (sequences,) number of tokens of each sequence.
        keys: (sequences,) uint64, random key of each sequence.
        purpose: Counter that separates the draws of different purposes.
    """
    positions = ragged.offsets_within(lengths)
    return uniform(mix(np.repeat(mix(keys, purpose), lengths), positions))


def chosen_tokens(lengths: np.ndarray, is_editable: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """Returns (tokens,) bool, True for each editable token with probability `rate`."""
    return is_editable & (draws_of(lengths, keys, _CHOICE) < rate)


def texts_of(lengths: np.ndarray, is_editable: np.ndarray) -> np.ndarray:
    """Returns (tokens,) the number of the text of each token, ascending.

    A text ends at the end of its sequence and before a token that is not editable.
    """
    starts = ragged.starts(lengths)
    begins = ~is_editable
    begins[starts] = True
    return np.cumsum(begins)
