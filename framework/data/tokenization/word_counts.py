"""Word counts in bounded memory, from which every vocabulary is trained.

Words are counted batch by batch in any process. The final counts depend only on the sequence of the batches, not on the
order of a dictionary or on the number of processes.
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
    """Sum of word counts. Above its limits it drops the rarest words, down to three quarters of the limits.

    A hash of the word decides which of equally rare words stay. If nearly every word of a text is new (Chinese, where
    words between two punctuation marks are whole clauses), the sample covers the text from its beginning to its end.

    Args:
        counts: Initial counts.
        max_words: Most distinct words.
        max_characters: Most characters of all distinct words.

    Attributes:
        num_words: Occurrences that were added, including those of dropped words.
        num_dropped: Occurrences of dropped words, on which no vocabulary is trained.
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
        """Returns the number of distinct words."""
        return len(self._counts)

    def items(self) -> Iterator[tuple[str, int]]:
        """Yields (word, count) of each distinct word."""
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
        """Returns the most frequent words, as many as a trainer has memory for.

        `tokenizers` needs about 120 bytes per character of distinct words, so 6,000,000 characters stay below 800 MB.
        """
        return most_frequent(self._counts, len(self._counts), _TRAINED_CHARACTERS)


def most_frequent(counts: Mapping[str, int], max_words: int, max_characters: int) -> dict[str, int]:
    """Returns the most frequent words within both limits. Among words of equal count, larger hashes take precedence."""
    if len(counts) <= max_words and sum(map(len, counts)) <= max_characters:
        return dict(counts)
    values = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
    checksums = np.fromiter((zlib.crc32(word.encode()) for word in counts), dtype=np.uint64, count=len(counts))
    hashes = mix(key("equally rare words"), checksums)
    order = np.lexsort((hashes, values))[::-1]
    too_many = (np.arange(len(order)) >= max_words) | (np.cumsum(lengths[order]) > max_characters)
    first_out = order[np.argmax(too_many)]
    # Words with equal count and hash are dropped together. Otherwise the order of the dictionary would decide.
    kept = (values > values[first_out]) | ((values == values[first_out]) & (hashes > hashes[first_out]))
    return {word: count for (word, count), keep in zip(counts.items(), kept.tolist(), strict=True) if keep}


def repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Yields texts that repeat each word by its count, in a fixed order, for the trainers of `tokenizers`.

    These trainers accept texts, not counts. Above 100,000,000 occurrences, all counts are divided by the same number.
    """
    divisor = max(1, -(-sum(words.values()) // _MAX_OCCURRENCES))
    for word, count in sorted(words.items()):
        occurrences = (count + divisor // 2) // divisor
        for first in range(0, occurrences, _REPETITIONS):
            yield f"{word} " * min(_REPETITIONS, occurrences - first)
