"""Where the tokenizer of a token store comes from: given, or trained on the words of the corpus.

One class for each choice of the config group `vocabulary`; those that train are in
`framework.data.tokenization.wordpiece_training` and `framework.data.tokenization.byte_level_training`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import ConfigError, DataError


class VocabularyTraining(Protocol):
    """Trains a vocabulary from counted words; a plain dataclass of settings, so that it can be pickled."""

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Words of a batch of texts; pure, so that batches can be counted in any process."""
        ...

    def train(self, counts: WordCounts, folder: str | Path) -> Tokenizer:
        """Trains and writes files that transformers loads; the same bytes from the same counts in every process."""
        ...


@dataclass(frozen=True)
class GivenTokenizer:
    """A tokenizer that is there already.

    Attributes:
        path: A folder with tokenizer.json or vocab.txt.
    """

    path: str

    def __post_init__(self) -> None:
        if not str(self.path).strip():
            raise ConfigError("the vocabulary's `path` is empty; name a folder with tokenizer.json or vocab.txt.")

    def load(self) -> Tokenizer:
        """Loads it.

        Raises:
            DataError: See `Tokenizer.from_folder`.
        """
        return Tokenizer.from_folder(self.path)


MAX_VOCAB_SIZE = 2**24
"""Far more than the largest published vocabulary; `tokenizers` allocates memory for all tokens at once."""


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
    """The words that a vocabulary is trained on.

    Raises:
        DataError: There are none.
    """
    words = counts.for_training()
    if not words:
        raise DataError("the texts hold no words, so no vocabulary can be trained; check the sources.")
    return words


def write_tokenizer(folder: str | Path, files: Mapping[str, object]) -> Tokenizer:
    """Writes a tokenizer folder and loads it.

    Args:
        folder: Is made.
        files: Contents by name; what is no text is written as JSON.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return Tokenizer.from_folder(folder)
