"""How often each word occurs, in bounded memory: what every vocabulary is trained on.

Words are counted batch by batch, wherever that is done; what the counts are at the end depends only on the sequence of
the batches, not on the order of a dictionary or on the number of processes that counted.
"""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from framework.random import key, mix

_MAX_WORDS = 2_000_000
_MAX_CHARACTERS = 40_000_000
_TRAINED_CHARACTERS = 6_000_000
_MAX_OCCURRENCES = 100_000_000
_REPETITIONS = 10_000


class WordCounts:
    """Adds up counts; when it holds too many words the rarest go, down to three quarters of the limits.

    Of equally rare words a fair sample stays, decided by a hash of the word: text in which nearly every word is new
    (Chinese, whose words between two marks are whole clauses) keeps a sample from its beginning to its end.

    Args:
        counts: The first ones.
        max_words: Most distinct words.
        max_characters: Most characters of them together.

    Attributes:
        num_words: Occurrences that were added, dropped ones too.
        num_dropped: Occurrences of words that had to go, so that no vocabulary is trained on them.
    """

    def __init__(
        self,
        counts: Mapping[str, int] | None = None,
        max_words: int = _MAX_WORDS,
        max_characters: int = _MAX_CHARACTERS,
    ) -> None:
        self._counts: dict[str, int] = {}
        self._characters = 0
        self._limits = (max_words, max_characters)
        self.num_words = 0
        self.num_dropped = 0
        self.add(counts or {})

    def __len__(self) -> int:
        """Distinct words that are held."""
        return len(self._counts)

    def items(self) -> Iterator[tuple[str, int]]:
        """(word, count) of each word that is held."""
        return iter(self._counts.items())

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds the counts of a batch of texts."""
        held = self._counts
        for word, count in counts.items():
            if word in held:
                held[word] += count
            else:
                held[word] = count
                self._characters += len(word)
            self.num_words += count
        max_words, max_characters = self._limits
        if len(held) > max_words or self._characters > max_characters:
            self._counts = most_frequent(held, max_words * 3 // 4, max_characters * 3 // 4)
            self._characters = sum(map(len, self._counts))
            self.num_dropped = self.num_words - sum(self._counts.values())

    def for_training(self) -> dict[str, int]:
        """The most frequent words, as many as a trainer has room for.

        `tokenizers` needs about 120 bytes a character of distinct words, so 6,000,000 of them stay below 800 MB.
        """
        return most_frequent(self._counts, len(self._counts), _TRAINED_CHARACTERS)


def most_frequent(counts: Mapping[str, int], max_words: int, max_characters: int) -> dict[str, int]:
    """The most frequent words that fit into both limits; where not all of equal count fit, those with larger hashes."""
    if len(counts) <= max_words and sum(map(len, counts)) <= max_characters:
        return dict(counts)
    values = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
    checksums = np.fromiter((zlib.crc32(word.encode()) for word in counts), dtype=np.uint64, count=len(counts))
    hashes = mix(key("equally rare words"), checksums)
    order = np.lexsort((hashes, values))[::-1]
    too_many = (np.arange(len(order)) >= max_words) | (np.cumsum(lengths[order]) > max_characters)
    first_out = order[np.argmax(too_many)]
    # Words with the same count and hash go together, or the order of the dictionary would decide between them.
    kept = (values > values[first_out]) | ((values == values[first_out]) & (hashes > hashes[first_out]))
    return {word: count for (word, count), keep in zip(counts.items(), kept.tolist(), strict=True) if keep}


def repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Texts of words between spaces with these counts, in a fixed order, for the trainers of `tokenizers`.

    They take texts, not counts. Beyond 100,000,000 occurrences all counts are divided by one number.
    """
    divisor = max(1, -(-sum(words.values()) // _MAX_OCCURRENCES))
    for word, count in sorted(words.items()):
        occurrences = (count + divisor // 2) // divisor
        for first in range(0, occurrences, _REPETITIONS):
            yield f"{word} " * min(_REPETITIONS, occurrences - first)
