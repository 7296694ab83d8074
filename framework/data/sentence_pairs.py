"""Sequences of consecutive sentences, one segment or BERT's pairs, as stretches of a token store.

Follows Devlin et al. 2019 (arXiv:1810.04805, appendix A.2) and its create_pretraining_data.py, with one departure:
where a chunk begins and ends does not depend on the draws, so that a sequence index means the same text in every epoch
and any index can be reached at once.
"""

from dataclasses import dataclass

import numpy as np

from framework.errors import ConfigError, DataError
from framework.random import below, key, mix, uniform

SHORT_PROB = 0.1
RANDOM_NEXT_PROB = 0.5
FOLLOWS, RANDOM = 0, 1
"""Labels of next-sentence prediction, as BERT numbers them: 0, B follows A; 1, B is from another document."""


@dataclass(frozen=True, slots=True)
class Segments:
    """What each sequence holds, as stretches of the store.

    Attributes:
        starts: (sequences, segments) int64 token places; segments is 2 with next-sentence prediction, else 1.
        lengths: (sequences, segments) int64, all positive.
        labels: (sequences,) int64, FOLLOWS or RANDOM (FOLLOWS everywhere without next-sentence prediction).
    """

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class SentenceChunks:
    """A fixed division of documents into chunks of consecutive sentences; one chunk is one sequence index.

    A document's sentences are taken greedily while they fit. A sentence of more than half a chunk (without pairs: a
    whole chunk) is first cut into pieces of even lengths, so that each chunk but a document's last can be split in two;
    no text is dropped.

    Args:
        document_offsets: (documents + 1,) token places in the store.
        document_sentences: (documents + 1,) first sentence of each document.
        sentence_offsets: (sentences + 1,) token places in the store.
        documents: Ascending documents to use; others do not exist here.
        max_tokens: Most tokens of a chunk, special tokens not counted.
        pairs: Whether chunks will be split into pairs.

    Raises:
        ConfigError: `max_tokens` is below 2.
        DataError: Pairs are wanted and there are fewer than 2 documents.
    """

    def __init__(
        self,
        document_offsets: np.ndarray,
        document_sentences: np.ndarray,
        sentence_offsets: np.ndarray,
        documents: np.ndarray,
        max_tokens: int,
        pairs: bool,
    ) -> None:
        if max_tokens < 2:
            raise ConfigError(
                f"sequences have room for {max_tokens} tokens beside the special ones, 2 is the least; raise "
                "sequence_length."
            )
        if pairs and len(documents) < 2:
            raise DataError(
                f"next-sentence prediction draws from another document, but there is {len(documents)}; add documents "
                "or set task.nsp=false."
            )
        self.max_tokens = max_tokens
        self.pairs = pairs
        counts = document_sentences[documents + 1] - document_sentences[documents]
        sentences = _ranges(document_sentences[documents], counts)
        lengths = sentence_offsets[sentences + 1] - sentence_offsets[sentences]
        largest = max_tokens // 2 if pairs else max_tokens
        num_pieces = -(-lengths // largest)
        # Piece k of n of a sentence with t tokens covers [t * k // n, t * (k + 1) // n).
        order = _ranges(np.zeros_like(num_pieces), num_pieces)
        whole, parts = np.repeat(lengths, num_pieces), np.repeat(num_pieces, num_pieces)
        piece_lengths = whole * (order + 1) // parts - whole * order // parts
        # (pieces + 1,) places counted over the used documents only; `_shifts` leads from there to the store.
        self._pieces = np.concatenate([[0], np.cumsum(piece_lengths)])
        sentence_pieces = np.concatenate([[0], np.cumsum(num_pieces)])
        # (documents + 1,) first piece of each document.
        self._document_pieces = sentence_pieces[np.concatenate([[0], np.cumsum(counts)])]
        self._shifts = document_offsets[documents] - self._pieces[self._document_pieces[:-1]]
        # (chunks + 1,) first piece of each chunk; chunks cover all pieces in order.
        self._chunks = _greedy_chunks(self._pieces, self._document_pieces, max_tokens)
        self._chunk_documents = np.searchsorted(self._document_pieces, self._chunks[:-1], side="right") - 1

    def __len__(self) -> int:
        return len(self._chunks) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return int(self._pieces[-1])

    def whole(self, indices: np.ndarray) -> Segments:
        """Each chunk as one segment.

        Args:
            indices: (sequences,) int64 in [0, len).
        """
        first, last = self._chunks[indices], self._chunks[indices + 1]
        starts, ends = self._pieces[first], self._pieces[last]
        shifted = starts + self._shifts[self._chunk_documents[indices]]
        return Segments(shifted[:, None], (ends - starts)[:, None], np.zeros(len(indices), dtype=np.int64))

    def draw_pairs(self, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Segments:
        """Splits each chunk into the segments of a pair: a function of (seed, epoch, index) alone.

        - With probability 0.1 the target length is uniform in [2, max_tokens] instead of max_tokens, and the chunk ends
          with the sentence that reaches it.
        - A is the first 1 to n - 1 of the chunk's n pieces, uniformly.
        - With probability 0.5 B is the rest of the chunk. Otherwise, and always where the chunk has one piece only, B
          begins at a uniformly drawn piece of a uniformly drawn other document and takes as many pieces as fit into the
          target beside A, at least one, cut if it is longer than the room.

        Args:
            seed: Of the run.
            epochs: (sequences,) int64.
            indices: (sequences,) int64 in [0, len).
        """
        pieces, doc_pieces = self._pieces, self._document_pieces
        keys = mix(mix(key(seed, "sentence pairs"), epochs), indices)
        draws = mix(keys[:, None], np.arange(6))
        document = self._chunk_documents[indices]
        first, last = self._chunks[indices], self._chunks[indices + 1]

        short = uniform(draws[:, 0]) < SHORT_PROB
        target = np.where(short, 2 + below(draws[:, 1], self.max_tokens - 1), self.max_tokens)
        last = np.where(short, np.minimum(last, np.searchsorted(pieces, pieces[first] + target)), last)
        num_pieces = last - first
        middle = first + np.where(num_pieces > 1, 1 + below(draws[:, 2], np.maximum(num_pieces - 1, 1)), 1)
        starts_a, length_a = pieces[first], pieces[middle] - pieces[first]

        random_next = (num_pieces == 1) | (uniform(draws[:, 3]) < RANDOM_NEXT_PROB)
        other = below(draws[:, 4], len(doc_pieces) - 2)
        other += other >= document
        other_first, other_last = doc_pieces[other], doc_pieces[other + 1]
        begin = other_first + below(draws[:, 5], other_last - other_first)
        fitting = np.searchsorted(pieces, pieces[begin] + target - length_a, side="right") - 1
        end = np.clip(fitting, begin + 1, other_last)
        length_other = np.minimum(pieces[end] - pieces[begin], self.max_tokens - length_a)

        starts_b = np.where(random_next, pieces[begin] + self._shifts[other], pieces[middle] + self._shifts[document])
        length_b = np.where(random_next, length_other, pieces[last] - pieces[middle])
        starts = np.stack([starts_a + self._shifts[document], starts_b], axis=1)
        return Segments(starts, np.stack([length_a, length_b], axis=1), np.where(random_next, RANDOM, FOLLOWS))

    def unused_fraction(self, seed: int, epoch: int) -> float:
        """Share of the text that next-sentence prediction leaves out in an epoch.

        That is the rest of chunks whose B is random, and what short targets cut off. The next epoch draws anew. (In
        BERT's own script such a rest goes into the next sequence.)
        """
        if not self.pairs:
            return 0.0
        used = 0
        for begin in range(0, len(self), 1_000_000):
            indices = np.arange(begin, min(begin + 1_000_000, len(self)))
            drawn = self.draw_pairs(seed, np.full(len(indices), epoch), indices)
            used += int(drawn.lengths[:, 0].sum() + drawn.lengths[drawn.labels == FOLLOWS, 1].sum())
        return 1 - used / self.num_tokens


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of each range, end to end."""
    ends = np.cumsum(counts)
    result = np.repeat(starts - (ends - counts), counts)
    result += np.arange(len(result))
    return result


def _greedy_chunks(pieces: np.ndarray, document_pieces: np.ndarray, max_tokens: int) -> np.ndarray:
    """First piece of each chunk, and the number of pieces at the end.

    All documents go forward together, a chunk at a time: as many rounds as the longest document has chunks.
    """
    num_pieces = len(pieces) - 1
    ends = np.repeat(document_pieces[1:], np.diff(document_pieces))
    following = np.minimum(np.searchsorted(pieces, pieces[:-1] + max_tokens, side="right") - 1, ends)
    is_first = np.zeros(num_pieces + 1, dtype=bool)
    current = document_pieces[:-1]
    while len(current):
        is_first[current] = True
        after = following[current]
        current = after[after < ends[current]]
    is_first[num_pieces] = True
    return np.flatnonzero(is_first)
