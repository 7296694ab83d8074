"""Source of a token store's tokenizer: an existing one, or one trained on the words of the corpus.

Each choice of the config group `vocabulary` has one class. The classes that train are in
`framework.data.tokenization.wordpiece_training` and `framework.data.tokenization.byte_level_training`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import ConfigError, DataError


class VocabularyTraining(Protocol):
    """Training of a vocabulary from counted words; a plain dataclass of settings that can be pickled."""

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON values; content of files instead of their paths."""
        ...

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Counts the words of a batch of texts; pure, so that any process can count a batch."""
        ...

    def train(self, counts: WordCounts, folder: str | Path, added_tokens: Sequence[str] = ()) -> Tokenizer:
        """Trains and writes files that transformers loads. The same counts yield the same bytes in every process.

        Args:
            counts: Word counts from `count`.
            folder: Folder for the files.
            added_tokens: Tokens that texts contain as they are, such as "[EMAIL]"; no text is ever split inside them.
        """
        ...


@dataclass(frozen=True)
class GivenTokenizer:
    """Existing tokenizer.

    Attributes:
        path: Folder with tokenizer.json or vocab.txt.
    """

    path: str

    def __post_init__(self) -> None:
        if not str(self.path).strip():
            raise ConfigError(
                "the vocabulary's `path` is empty. It must name a tokenizer folder. Set it to a folder with "
                "tokenizer.json or vocab.txt."
            )

    def load(self) -> Tokenizer:
        """Loads the tokenizer.

        Raises:
            DataError: See `Tokenizer.from_folder`.
        """
        return Tokenizer.from_folder(self.path)


MAX_VOCAB_SIZE = 2**24
"""Limit far above the largest published vocabulary. `tokenizers` allocates memory for all tokens at once."""


def check_vocab_size(vocab_size: int) -> None:
    """Rejects an unreasonably large vocabulary.

    Raises:
        ConfigError: The size exceeds MAX_VOCAB_SIZE.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise ConfigError(
            f"the vocabulary's `vocab_size` is {vocab_size:,}. At most {MAX_VOCAB_SIZE:,} tokens can be trained. Lower "
            "it, for example to 30,000."
        )


def most_tokens(vocab_size: int, num_fixed: int, words: Mapping[str, int]) -> int:
    """Returns the requested vocabulary size, or the largest size that the words allow if that is smaller.

    Each merge adds a token and shortens a word by one piece, which limits the number of merges.

    Args:
        vocab_size: Requested number of tokens.
        num_fixed: Number of tokens before any merge.
        words: Words; their characters are the initial pieces.
    """
    return min(vocab_size, num_fixed + sum(len(word) - 1 for word in words))


def words_for_training(counts: WordCounts) -> dict[str, int]:
    """Returns the words, with their counts, on which a vocabulary is trained.

    Raises:
        DataError: The counts are empty.
    """
    words = counts.for_training()
    if not words:
        raise DataError("the texts hold no words. A vocabulary cannot be trained without any. Check the sources.")
    return words


def write_tokenizer(folder: str | Path, files: Mapping[str, object]) -> Tokenizer:
    """Writes a tokenizer folder and loads it.

    Args:
        folder: Folder to create.
        files: File contents by name; a content that is not a string is written as JSON.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return Tokenizer.from_folder(folder)
