"""Sequences of sequence classification: texts tokenised once, laid out with special tokens, held as flat arrays.

Layout: `[CLS] text [SEP]`, for pairs `[CLS] text [SEP] pair [SEP]` with segments 0 and 1. RoBERTa's doubled separator
    is not
used.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from framework.batch import PackedBatch
from framework.constants import IGNORE_INDEX
from framework.data.collate import Capacity, Target, pack_sequences
from framework.data.order import Shuffle
from framework.data.tokenization.tokenizer import Tokenizer

_TEXTS_AT_ONCE = 1000
"""A tokenizer's result takes some hundred bytes a token until only the ids are kept."""


class ClassificationSource:
    """The sequences of one split (`framework.data.plan.SequenceSource`); neither epoch nor step changes them.

    Args:
        texts: One for each sequence.
        pairs: The second texts; None for single texts.
        labels: (sequences,) int64 places in the label set, IGNORE_INDEX where unknown; None: all unknown.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included; longer texts lose their end.
    """

    def __init__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        labels: np.ndarray | None,
        tokenizer: Tokenizer,
        max_length: int,
    ) -> None:
        self.max_length = max_length
        self._labels = np.full(len(texts), IGNORE_INDEX) if labels is None else np.asarray(labels, dtype=np.int64)
        segments = [texts] if pairs is None else [texts, pairs]
        room = max_length - 1 - len(segments)
        encoded, whole = zip(*(_encode(segment, tokenizer, room) for segment in segments), strict=True)
        lengths = np.array(whole, dtype=np.int64)
        kept = np.minimum(lengths, room) if pairs is None else truncate_longest_first(lengths[0], lengths[1], room)
        self._first_segment = kept[0] + 2
        self._lengths = kept.sum(axis=0) + 1 + len(segments)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._input_ids = np.full(int(self._lengths.sum()), tokenizer.sep_id, dtype=np.int32)
        self._input_ids[self._starts] = tokenizer.cls_id
        starts = self._starts + 1
        for segment, sizes in zip(encoded, kept, strict=True):
            self._input_ids[_ranges(starts, sizes)] = _joined(
                [ids[:size] for ids, size in zip(segment, sizes, strict=True)]
            )
            starts = starts + sizes + 1
        self._has_pairs = pairs is not None
        self.shuffle = Shuffle()

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def fingerprint(self) -> str:
        """Of ids, lengths and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self._input_ids, self._lengths, self._first_segment, self._labels):
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def mean_length(self) -> float:
        """Mean tokens of a sequence, special tokens included."""
        return float(self._lengths.mean())

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Nothing is to be read, everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:  # noqa: ARG002  the same in every epoch
        """(sequences,) int64 tokens of each, special tokens included."""
        return self._lengths[indices]

    def build(
        self,
        epochs: np.ndarray,  # noqa: ARG002  the same in every epoch
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,  # noqa: ARG002  and at every step
        capacity: Capacity | None = None,
    ) -> PackedBatch:
        """One micro-batch. Target: labels (sequences,); count: classification."""
        lengths = self._lengths[indices]
        input_ids = self._input_ids[_ranges(self._starts[indices], lengths)]
        segments = None
        if self._has_pairs:
            positions = _ranges(np.zeros_like(lengths), lengths)
            segments = positions >= np.repeat(self._first_segment[indices], lengths)
        labels = self._labels[indices]
        counts = {"classification": float((labels != IGNORE_INDEX).sum())}
        return pack_sequences(
            input_ids, lengths, sequence_ids, segments, {"labels": Target(labels, "sequences")}, counts, capacity
        )


def truncate_longest_first(first: np.ndarray, second: np.ndarray, room: int) -> np.ndarray:
    """Lengths of pairs after tokens were taken from the longer text, one at a time, until both fit.

    This is LongestFirst of the `tokenizers` library in closed form.

    Args:
        first: (pairs,) tokens of the first texts.
        second: (pairs,) tokens of the second texts.
        room: Tokens for both.

    Returns:
        (2, pairs) lengths. Where both are cut and the room is odd, the longer text keeps one more, of equals the
        second.
    """
    short, long = np.minimum(first, second), np.maximum(first, second)
    short = np.where(short + long > room, np.minimum(short, room // 2), short)
    long = np.minimum(long, room - short)
    return np.where(first > second, [long, short], [short, long])


def _encode(texts: Sequence[str], tokenizer: Tokenizer, room: int) -> tuple[list[np.ndarray], list[int]]:
    """The first `room` ids of each text, and how many it has in all."""
    encoded: list[np.ndarray] = []
    lengths: list[int] = []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        for ids in tokenizer.encode_batch(texts[first : first + _TEXTS_AT_ONCE]):
            encoded.append(ids[:room].copy())
            lengths.append(len(ids))
    return encoded, lengths


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + size - 1 for each start, end to end."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()), dtype=np.int64)
