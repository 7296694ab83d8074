"""Canaries: random texts in the training data, whose memorization the audit `canaries` measures.

A canary is a prefix and a secret, both random words of the vocabulary (Carlini et al. 2019, arXiv:1802.08232, section
4). A model that has not seen it prefers its secret to other random ones only by chance. In a labelled table, a canary
is a row with such a text and a random label.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError, check_at_least
from framework.random import generator

CANARIES = "canaries"
"""Name of the canaries in store.json and in the data card, and of the source of their documents."""

PREFIX_WORDS, SECRET_WORDS = 4, 4
_LEAST_WORDS = 64
_MOST_CANARIES = 10_000


@dataclass(frozen=True)
class CanarySettings:
    """Canaries of a store or table.

    Attributes:
        number: Number of canaries.
        repeats: Numbers of copies. The canaries take them in turn.
        seed: Seed of their words.
        section: Part of the config that has these keys, for messages.
    """

    number: int
    repeats: tuple[int, ...] = (1,)
    seed: int = 0
    section: str = "corpus"

    def __post_init__(self) -> None:
        if not 1 <= self.number <= _MOST_CANARIES:
            raise ConfigError(
                f"{self.section}.canaries is {self.number}. It must be from 1 to {_MOST_CANARIES:,}, or 0 for none. A "
                "usual number is 20."
            )
        if not self.repeats or len(self.repeats) > self.number:
            raise ConfigError(
                f"{self.section}.canary_repeats is {list(self.repeats)} for {self.number} canaries. It must have at "
                "least one number of copies, and a canary for each. Choose, for example, [1,4,16]."
            )
        for number in self.repeats:
            check_at_least(f"{self.section}.canary_repeats", number, 1)

    def check(self, sources: Collection[str], streamed: bool) -> None:
        """Checks that canaries can be added to a store.

        Args:
            sources: Names of the sources of the store.
            streamed: True if the store holds no tokens.

        Raises:
            ConfigError: The store is streamed, or a source has the name of the canaries.
        """
        if streamed:
            raise ConfigError(
                f"corpus.canaries is {self.number} and stream is true. A streamed store holds no tokens, so it has no "
                "place for documents that no source has. Store the tokens (stream=false), or set corpus.canaries=0."
            )
        if CANARIES in sources:
            raise ConfigError(
                f"a source of the corpus is named {CANARIES}, and corpus.canaries is {self.number}. The documents of "
                "the canaries are a source of this name. Rename the source."
            )

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return {"number": self.number, "repeats": list(self.repeats), "seed": self.seed}


@dataclass(frozen=True)
class Canary:
    """A canary.

    Attributes:
        prefix: Words of the prefix, separated by spaces.
        secret: Words of the secret, separated by spaces.
        repeats: Number of its copies.
    """

    prefix: str
    secret: str
    repeats: int

    @property
    def text(self) -> str:
        """Returns its text."""
        return f"{self.prefix} {self.secret}"


def canary_words(tokenizer: Tokenizer) -> list[str]:
    """Returns the words that canaries consist of: words of letters that the tokenizer encodes as one token.

    Single ASCII letters are left out. A Chinese character is a word.

    Raises:
        ConfigError: The vocabulary has too few of them.
    """
    prefix = " " if tokenizer.space_marked else ""
    ids = [each for each in tokenizer.ordinary_ids.tolist() if tokenizer.starts_word[each]]
    words = [text.strip() for text in tokenizer.decode_batch([[each] for each in ids])]
    encoded = tokenizer.encode_batch([prefix + word for word in words])
    chosen = [
        word
        for word, own, found in zip(words, ids, encoded, strict=True)
        if word.isalpha() and (len(word) > 1 or not word.isascii()) and found.tolist() == [own]
    ]
    if len(chosen) < _LEAST_WORDS:
        raise ConfigError(
            f"the vocabulary has {len(chosen)} words that are one token. Canaries are random words and need at least "
            f"{_LEAST_WORDS}. Use a larger vocabulary, or no canaries."
        )
    return chosen


def draw_texts(words: Sequence[str], number: int, num_words: int, *key: int | str) -> list[str]:
    """Draws texts of independent, uniform words.

    Args:
        words: Words to draw from.
        number: Number of texts.
        num_words: Number of words of each text.
        key: Key of the draws.
    """
    draws = generator(*key).integers(0, len(words), (number, num_words))
    return [" ".join(words[index] for index in row) for row in draws.tolist()]


def draw_canaries(settings: CanarySettings, tokenizer: Tokenizer) -> list[Canary]:
    """Draws canaries, which depend on the settings and the vocabulary alone.

    Raises:
        ConfigError: The vocabulary has too few words.
    """
    words = canary_words(tokenizer)
    parts = [
        draw_texts(words, settings.number, size, settings.seed, CANARIES, name)
        for name, size in (("prefix", PREFIX_WORDS), ("secret", SECRET_WORDS))
    ]
    return [
        Canary(prefix, secret, settings.repeats[index % len(settings.repeats)])
        for index, (prefix, secret) in enumerate(zip(*parts, strict=True))
    ]


def draw_labels(settings: CanarySettings, labels: Sequence[str]) -> list[str]:
    """Draws the label of each canary of a table."""
    draws = generator(settings.seed, CANARIES, "label").integers(0, len(labels), settings.number)
    return [labels[index] for index in draws.tolist()]


def as_record(canaries: Sequence[Canary]) -> list[dict[str, Any]]:
    """Returns canaries as JSON values, for store.json."""
    return [dict(vars(canary)) for canary in canaries]


def read_canaries(meta: Mapping[str, Any], store: str) -> list[Canary]:
    """Returns the canaries of a store.

    Args:
        meta: Content of store.json.
        store: Folder of the store, for messages.

    Raises:
        DataError: The store has no canaries, or their record is damaged.
    """
    records = meta.get(CANARIES)
    if not records:
        raise DataError(
            f"the token store {store} has no canaries. The audit canaries looks for random documents that are put into "
            "a store before the training. Prepare a store with corpus.canaries=20, and train on it."
        )
    try:
        return [Canary(str(each["prefix"]), str(each["secret"]), int(each["repeats"])) for each in records]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the record of the canaries in {store} is damaged ({error!r}). Restore store.json, or prepare it again."
        ) from error


def in_copies(canaries: Sequence[Canary]) -> Iterator[tuple[int, int]]:
    """Yields the index of the canary and the number of the copy, for each copy; those of a canary are apart."""
    for copy in range(max((canary.repeats for canary in canaries), default=0)):
        yield from ((index, copy) for index, canary in enumerate(canaries) if canary.repeats > copy)
