"""Token store of documents whose lengths are drawn and whose words mean nothing, for plans without data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.store.writer import TOKENIZER_FOLDER, StoreWriter
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_at_least
from framework.random import key, mix, random_integers, uniform

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SENTENCE_TOKENS = 24
_DOCUMENTS_OF_A_BATCH = 4096


@dataclass(frozen=True)
class Lengths:
    """Lengths of the documents of a corpus that is not at hand.

    Lengths are drawn from an exponential distribution above `min`, cut at `max`: few long documents, many short ones.

    Args:
        mean: Mean tokens of a document.
        max: Most tokens of a document.
        documents: Number of documents of the corpus.
        vocab_size: Size of the vocabulary.
        min: Fewest tokens of a document.
    """

    mean: int = 500
    max: int = 8192
    documents: int = 1_000_000
    vocab_size: int = 30522
    min: int = 8

    def __post_init__(self) -> None:
        check_at_least("plan.lengths.min", self.min, 2)
        check_at_least("plan.lengths.documents", self.documents, 1)
        if not self.min < self.mean <= self.max:
            raise ConfigError(
                f"plan.lengths.mean is {self.mean}, min {self.min} and max {self.max}. The mean must be above the "
                "minimum and at most the maximum. Correct one of them."
            )
        if self.vocab_size <= len(SPECIAL_TOKENS):
            raise ConfigError(
                f"plan.lengths.vocab_size is {self.vocab_size}. {len(SPECIAL_TOKENS)} ids are special tokens. Give the "
                "size of the vocabulary, for example 30522."
            )

    def draw(self, count: int) -> np.ndarray:
        """Returns (count,) int64 lengths of documents."""
        draws = uniform(mix(key("lengths of a plan"), np.arange(count)))
        lengths = self.min - np.log1p(-draws) * (self.mean - self.min)
        return np.clip(lengths, self.min, self.max).astype(np.int64)


def write_drawn_store(folder: Path, lengths: Lengths, num_tokens: int) -> None:
    """Writes a finished token store with its tokenizer.

    Args:
        folder: Folder that does not exist.
        lengths: Lengths of the documents.
        num_tokens: Least tokens of the store.
    """
    tokenizer_folder = folder / TOKENIZER_FOLDER
    tokenizer_folder.mkdir(parents=True)
    words = (f"w{number}" for number in range(lengths.vocab_size - len(SPECIAL_TOKENS)))
    (tokenizer_folder / "vocab.txt").write_text("\n".join((*SPECIAL_TOKENS, *words)) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    count = -(-num_tokens // lengths.min)
    drawn = lengths.draw(min(count, 2 * -(-num_tokens // lengths.mean) + 64))
    writer = StoreWriter(folder, lengths.vocab_size)
    for start in range(0, len(drawn), _DOCUMENTS_OF_A_BATCH):
        part = drawn[start : start + _DOCUMENTS_OF_A_BATCH]
        sentences = np.maximum(1, part // _SENTENCE_TOKENS)
        sentence_lengths = np.concatenate(
            [size // number + (np.arange(number) < size % number) for size, number in zip(part, sentences, strict=True)]
        )
        ids = random_integers(mix(key("words"), np.arange(part.sum())), lengths.vocab_size - len(SPECIAL_TOKENS))
        hashes = mix(key("documents"), np.arange(start, start + len(part)))
        writer.add(ids + len(SPECIAL_TOKENS), sentence_lengths, sentences, hashes)
    counts = {"documents": len(drawn), "tokens": int(drawn.sum()), "sentences": 0}
    source = {"name": "drawn", "documents": len(drawn)}
    writer.finish(
        {"counts": counts, "sources": [source], "skipped": {}, "settings": None, "streamed": False}, tokenizer
    )
