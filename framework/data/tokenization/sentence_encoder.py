"""Fast encoding of many sentences: each distinct word is encoded once, then looked up in one vectorised gather."""

from collections.abc import Sequence

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from framework import ragged
from framework.data.tokenization.tokenizer import Tokenizer

_MAX_WORDS = 400_000
_MAX_CHARACTERS = 20_000_000


class SentenceEncoder:
    """Encoder that works word by word if this yields the same ids as encoding whole sentences.

    Two kinds of tokenizers allow it, since they never look across a space: those with BERT's pre-tokenizer, and
    byte-level BPE, whose words include the space before them (a sentence's first word too, as in running text). For
    other tokenizers the class encodes whole sentences.

    Args:
        tokenizer: Any tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._by_word = _never_looks_across_spaces(tokenizer)
        self._prefix = " " if tokenizer.space_marked else ""
        self._reset()

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes sentences from `split_sentences`, which are not empty and contain single spaces only.

        Returns:
            Concatenated ids of all sentences (tokens,) int32, and the tokens of each sentence (sentences,) int64. A
            sentence of control characters only may have none.
        """
        if not sentences:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        if not self._by_word:
            encoded = self._tokenizer.encode_batch([self._prefix + sentence for sentence in sentences])
            return np.concatenate(encoded), np.array([len(ids) for ids in encoded], dtype=np.int64)
        words = " ".join(sentences).split(" ")
        self._add(words)
        indices = np.fromiter(map(self._indices.__getitem__, words), dtype=np.int64, count=len(words))
        counts = self._counts[indices]
        ends = np.cumsum(counts)
        ids = self._ids[np.repeat(self._starts[indices] - (ends - counts), counts) + np.arange(ends[-1])]
        num_words = np.array([sentence.count(" ") + 1 for sentence in sentences], dtype=np.int64)
        return ids, np.add.reduceat(counts, ragged.starts(num_words))

    def _reset(self) -> None:
        self._indices: dict[str, int] = {}
        self._characters = 0
        self._ids = np.zeros(0, dtype=np.int32)
        self._starts = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)

    def _add(self, words: list[str]) -> None:
        # Text without spaces (Chinese) keeps yielding new "words", so the table is cleared before it grows large.
        if len(self._indices) > _MAX_WORDS or self._characters > _MAX_CHARACTERS:
            self._reset()
        new = [word for word in dict.fromkeys(words) if word not in self._indices]
        if not new:
            return
        encoded = self._tokenizer.encode_batch([self._prefix + word for word in new])
        self._indices.update(zip(new, range(len(self._indices), len(self._indices) + len(new)), strict=True))
        self._characters += sum(map(len, new))
        self._ids = np.concatenate([self._ids, *encoded])
        self._counts = np.concatenate([self._counts, np.array([len(ids) for ids in encoded], dtype=np.int64)])
        self._starts = ragged.starts(self._counts)


def _never_looks_across_spaces(tokenizer: Tokenizer) -> bool:
    normalizer, pre_tokenizer = tokenizer.backend.normalizer, tokenizer.backend.pre_tokenizer
    return isinstance(pre_tokenizer, pre_tokenizers.BertPreTokenizer | pre_tokenizers.ByteLevel) and (
        normalizer is None or isinstance(normalizer, normalizers.BertNormalizer | normalizers.NFC)
    )
