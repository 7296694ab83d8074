"""Typing errors in words: a neighbouring key, two letters in the wrong order, a missing letter, a doubled letter.

The four kinds are those of Pruthi et al. 2019 (arXiv:1905.11268). They add any letter, and edit one or two words of a
sentence. Here the added letter doubles another, and an independent draw for each word decides whether it gets an error.
"""

import re
from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np

from framework import ragged
from framework.data.augmentation.rewriting import TextAugmentation
from framework.errors import check_open_fraction
from framework.random import key, mix, uniform

_CHOICE, _KIND, _LETTER, _KEY = -1, -2, -3, -4
"""Counters that are mixed with the key of a word."""

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_UNSPACED}]{{2}}|[^\W\d_{_UNSPACED}]{{2,}}")
"""Words of at least two letters. Chinese characters and kana have no spaces: two of them count as a word."""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _keyboard() -> dict[str, str]:
    """Returns the keys beside each key of an American keyboard, whose rows are shifted by half a key."""
    neighbours: dict[str, str] = {}
    for number, row in enumerate(_ROWS):
        for index, letter in enumerate(row):
            beside = [row[index - 1 : index], row[index + 1 : index + 2]]
            above = _ROWS[number - 1][index : index + 2] if number > 0 else ""
            below = _ROWS[number + 1][max(index - 1, 0) : index + 1] if number + 1 < len(_ROWS) else ""
            neighbours[letter] = "".join([*beside, above, below])
    return neighbours


NEIGHBOURS = MappingProxyType(_keyboard())
"""Keys beside each letter key."""


class Typos(TextAugmentation):
    """Makes a typing error in some words, different ones in each epoch.

    An error depends on the key of its row, the text and the index of the word. Equal texts of a row get equal errors.

    Args:
        rate: Expected share of the words with an error.

    Raises:
        ConfigError: `rate` is not above 0 and below 1.
    """

    def __init__(self, rate: float) -> None:
        check_open_fraction("augmentation.rate", rate, "Choose for example 0.1.")
        self.rate = rate

    def rewrite(self, texts: Sequence[str], keys: np.ndarray) -> list[str]:
        """Returns the texts with errors; no word becomes empty."""
        spans = [[match.span() for match in _WORDS.finditer(text)] for text in texts]
        sizes = np.array([len(words) for words in spans], dtype=np.int64)
        text_keys = mix(keys, np.array([key(text) for text in texts], dtype=np.uint64))
        word_keys = mix(np.repeat(text_keys, sizes), ragged.offsets_within(sizes))
        chosen = np.flatnonzero(uniform(mix(word_keys, _CHOICE)) < self.rate)
        draws = [uniform(mix(word_keys[chosen], purpose)) for purpose in (_KIND, _LETTER, _KEY)]
        rewritten = list(texts)
        rows, words = np.repeat(np.arange(len(texts)), sizes)[chosen], ragged.offsets_within(sizes)[chosen]
        # From the last word of a text to its first, so that the spans before an error stay valid.
        for row, word, *drawn in reversed(list(zip(*(each.tolist() for each in (rows, words, *draws)), strict=True))):
            start, stop = spans[row][word]
            text = rewritten[row]
            rewritten[row] = text[:start] + mistype(text[start:stop], *drawn) + text[stop:]
        return rewritten


def mistype(word: str, kind: float, letter: float, beside: float) -> str:
    """Returns a word with one typing error.

    Args:
        word: At least two letters.
        kind: Number in [0, 1) that decides the kind of the error.
        letter: Number in [0, 1) that decides the letter.
        beside: Number in [0, 1) that decides the neighbouring key.
    """
    return _KINDS[int(kind * len(_KINDS))](word, letter, beside)


def _wrong_key(word: str, letter: float, beside: float) -> str:
    """Replaces a letter by one of a neighbouring key; in words without such letters, swaps two letters."""
    indices = [index for index, each in enumerate(word) if each.lower() in NEIGHBOURS]
    if not indices:
        return _swapped(word, letter, beside)
    index = indices[int(letter * len(indices))]
    letters = NEIGHBOURS[word[index].lower()]
    typed = letters[int(beside * len(letters))]
    return word[:index] + (typed.upper() if word[index].isupper() else typed) + word[index + 1 :]


def _swapped(word: str, letter: float, _: float) -> str:
    index = int(letter * (len(word) - 1))
    return word[:index] + word[index + 1] + word[index] + word[index + 2 :]


def _missing(word: str, letter: float, _: float) -> str:
    index = int(letter * len(word))
    return word[:index] + word[index + 1 :]


def _doubled(word: str, letter: float, _: float) -> str:
    index = int(letter * len(word))
    return word[: index + 1] + word[index:]


_KINDS: tuple[Callable[[str, float, float], str], ...] = (_wrong_key, _swapped, _missing, _doubled)
