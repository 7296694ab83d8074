"""Counterfactual augmentation: swaps the words of pairs such as he and she in some rows of each epoch.

Lu et al. 2018 (arXiv:1807.11714) add the swapped texts to the data. Here a hash of seed, epoch and row decides if the
words of a row are swapped, so that an epoch has the same number of rows as without augmentation. Labels do not change.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from framework.data.augmentation.rewriting import TextAugmentation
from framework.data.augmentation.word_pairs import read_word_pairs
from framework.errors import ConfigError, check_open_fraction
from framework.random import mix, uniform

_CHOICE = -1
"""Counter that is mixed with the key of a row."""


class Counterfactual(TextAugmentation):
    """Swaps all words of pairs in a row, or none.

    Args:
        pairs: File of pairs (`framework.data.augmentation.word_pairs`), or the name of a file in `pairs_folder`.
        swap_prob: Probability that the words of a row are swapped in an epoch.
        pairs_folder: Folder of the pairs that come with the configs; None: `pairs` is a path.

    Raises:
        ConfigError: `swap_prob` is not in (0, 1), or the file is missing or cannot be used.
    """

    def __init__(self, pairs: str, swap_prob: float = 0.5, pairs_folder: Path | None = None) -> None:
        check_open_fraction("augmentation.swap_prob", swap_prob, "With 0.5, both words of a pair are equally likely.")
        self.name = pairs
        self.swap_prob = swap_prob
        self.words = read_word_pairs(pairs, pairs_folder)

    @property
    def fingerprint(self) -> str:
        """Returns a hash of the pairs."""
        return self.words.fingerprint

    def rewrite(self, texts: Sequence[str], keys: np.ndarray) -> list[str]:
        """Returns the texts; in the chosen rows, with swapped words."""
        is_chosen = uniform(mix(keys, _CHOICE)) < self.swap_prob
        return [self.words.swap(text) if chosen else text for text, chosen in zip(texts, is_chosen, strict=True)]

    def check(self, texts: Sequence[pa.Array]) -> None:
        """Checks that a text has a word of the pairs.

        Raises:
            ConfigError: No text has one.
        """
        if not any(self.words.swap(text) != text for array in texts for text in _texts_of(array)):
            raise ConfigError(
                f"augmentation.pairs is {self.name}, but none of the {len(texts[0]):,} training texts contains a word "
                "of its pairs. Nothing would be swapped. Choose a file for the language of the texts."
            )


def _texts_of(array: pa.Array) -> Iterator[str]:
    return (value.as_py() for value in array)
