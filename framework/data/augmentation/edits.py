"""What is done to the tokens of a sequence: some are left out, change places, or give way to other words.

Each is a function of the tokens and of one key a sequence. Which tokens are meant is a draw for each by its position
(Wei, Zou 2019, "EDA", arXiv:1901.11196, who draw words and a fixed number of them). Special tokens are never touched:
they bound the texts of a sequence, no text loses all its tokens, and no token goes into another text.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np

from framework import ragged
from framework.data.flat_source import FlatTokens
from framework.errors import ConfigError
from framework.random import mix, uniform

_CHOICE, _ORDER = -1, -2
"""Counters under a sequence's key; positions are counted under what they give."""


class Augmentation(ABC):
    """One way to change tokens.

    Args:
        rate: Share of the tokens that are touched, about.

    Raises:
        ConfigError: `rate` is not above 0 and below 1.
    """

    def __init__(self, rate: float) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"augmentation.rate is {rate}, it must be above 0 and below 1; 0.1 is usual.")
        self.rate = rate

    def variants(self, epochs: np.ndarray) -> np.ndarray:
        """(items,) int64: in epochs with the same number a text is changed in the same way."""
        return epochs

    @abstractmethod
    def edit(self, tokens: FlatTokens, is_touchable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """The changed tokens; no sequence becomes longer or empty.

        Args:
            tokens: As they are in the source.
            is_touchable: (tokens,) True but for special tokens.
            keys: (sequences,) uint64, another one in each variant.
            variants: (sequences,) of `variants`.
        """


class Delete(Augmentation):
    """Leaves tokens out; of a text whose tokens would all go, the one with the largest draw stays."""

    def edit(self, tokens: FlatTokens, is_touchable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """The tokens that stay, in their order."""
        del variants
        draws = draws_of(tokens.lengths, keys, _CHOICE)
        stays = ~is_touchable | (draws >= self.rate)
        touchable = np.flatnonzero(is_touchable)
        if len(touchable):
            begins = np.flatnonzero(np.diff(texts_of(tokens.lengths, is_touchable)[touchable], prepend=-1))
            largest = np.maximum.reduceat(draws[touchable], begins)
            stays[touchable] |= draws[touchable] == np.repeat(largest, np.diff(begins, append=len(touchable)))
        rows = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
        lengths = np.bincount(rows[stays], minlength=len(tokens.lengths)).astype(np.int64)
        return replace(tokens, input_ids=tokens.input_ids[stays], places=tokens.places[stays], lengths=lengths)


class Swap(Augmentation):
    """Puts the chosen tokens of a text, where there are several, onto each other's places in a random order."""

    def edit(self, tokens: FlatTokens, is_touchable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """The same tokens in another order."""
        del variants
        chosen = np.flatnonzero(chosen_tokens(tokens.lengths, is_touchable, keys, self.rate))
        texts = texts_of(tokens.lengths, is_touchable)[chosen]
        order = np.lexsort((draws_of(tokens.lengths, keys, _ORDER)[chosen], texts))
        source = np.arange(len(tokens.places))
        source[chosen] = chosen[order]
        return replace(tokens, input_ids=tokens.input_ids[source], places=tokens.places[source])


class Replace(Augmentation):
    """Puts words that the model itself finds likely there into the place of others (Kobayashi 2018, arXiv:1805.06201).

    What the chosen tokens give way to is sampled before training begins, from the head for masked words of the weights
    that the run starts from (`framework.modules.word_samples`), in a number of variants that the epochs take in turn.
    The paper conditions the words on the label too, and hides one word at a time; here all chosen ones are hidden at
    once, and the label is not known to the model, so that a word may speak against it.

    Args:
        rate: Share of the tokens that are replaced, about; some by themselves.
        num_variants: How many times the texts are sampled; each costs one forward pass over them, in fp32.
        temperature: Logits are divided by it: above 1 words are more various.

    Attributes:
        samples: (variants, tokens) ids of all tokens of the source in each variant; None until they are known.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(self, rate: float, num_variants: int = 4, temperature: float = 1.0) -> None:
        super().__init__(rate)
        if num_variants < 1:
            raise ConfigError(f"augmentation.num_variants is {num_variants}, it must be at least 1.")
        if not temperature > 0:
            raise ConfigError(f"augmentation.temperature is {temperature}, it must be above 0.")
        self.num_variants = num_variants
        self.temperature = temperature
        self.samples: np.ndarray | None = None

    def variants(self, epochs: np.ndarray) -> np.ndarray:
        """Epochs take the variants in turn."""
        return epochs % self.num_variants

    def edit(self, tokens: FlatTokens, is_touchable: np.ndarray, keys: np.ndarray, variants: np.ndarray) -> FlatTokens:
        """The ids of the variant."""
        del is_touchable, keys
        if self.samples is None:
            raise RuntimeError("the words were not sampled before the first batch.")
        return replace(tokens, input_ids=self.samples[np.repeat(variants, tokens.lengths), tokens.places])


def draws_of(lengths: np.ndarray, keys: np.ndarray, purpose: int) -> np.ndarray:
    """(tokens,) float64 in [0, 1), each by its position under the key of its sequence: (sequences,) lengths, keys."""
    positions = ragged.offsets_within(lengths)
    return uniform(mix(np.repeat(mix(keys, purpose), lengths), positions))


def chosen_tokens(lengths: np.ndarray, is_touchable: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """(tokens,) True for each touchable token with a probability of `rate`."""
    return is_touchable & (draws_of(lengths, keys, _CHOICE) < rate)


def texts_of(lengths: np.ndarray, is_touchable: np.ndarray) -> np.ndarray:
    """(tokens,) a number for each text, in their order: it ends with its sequence and at a token not to be touched."""
    starts = ragged.starts(lengths)
    begins = ~is_touchable
    begins[starts] = True
    return np.cumsum(begins)
