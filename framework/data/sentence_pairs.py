"""Sequences of consecutive sentences, as one segment or as BERT's pairs of segments, given as ranges of a token store.

Follows Devlin et al. 2019 (arXiv:1810.04805, appendix A.2) and its create_pretraining_data.py, with one departure: the
random draws do not affect the boundaries of chunks. So a sequence index refers to the same text in every epoch, and
access to any index is direct.
"""

from dataclasses import dataclass

import numpy as np

from framework.data.store.sequence_index import Division, SequenceIndex
from framework.errors import DataError, counted
from framework.random import mix, random_integers, uniform

SHORT_PROB = 0.1
RANDOM_NEXT_PROB = 0.5
FOLLOWS, RANDOM = 0, 1
"""Labels of next-sentence prediction with BERT's numbering: 0, B follows A; 1, B is from another document."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of sequences, as ranges of tokens of the store.

    Attributes:
        starts: (sequences, segments) int64, token offset at which each segment begins in the store. `segments` is 2
            with next-sentence prediction, otherwise 1.
        lengths: (sequences, segments) int64, number of tokens of each segment, all positive.
        labels: (sequences,) int64, FOLLOWS or RANDOM (FOLLOWS everywhere without next-sentence prediction).
    """

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class SentenceChunks:
    """Chunks of a split as segments of sequences.

    Args:
        index: Index of the chunks.
        division: Division by which the index was built.
        neighbourhood: Number of consecutive chunks whose documents provide each other's random second segments. It
            keeps reads of the store local. None: all documents.

    Raises:
        DataError: The division has pairs, but there are fewer than 2 documents.
    """

    def __init__(self, index: SequenceIndex, division: Division, neighbourhood: int | None = None) -> None:
        if division.pairs and len(index.documents) < 2:
            raise DataError(
                f"the split has {counted(len(index.documents), 'document')}. Next-sentence prediction draws from "
                "another document. Add documents, or set task.nsp=false."
            )
        self.max_tokens = division.max_tokens
        self.pairs = division.pairs
        self._index = index
        self._neighbourhood = neighbourhood

    def __len__(self) -> int:
        return len(self._index)

    @property
    def documents(self) -> np.ndarray:
        """Returns (chunks,) int64 index of the document of each chunk, ascending."""
        return self._index.chunks[:, 2]

    def single_segments(self, chunks: np.ndarray) -> Segments:
        """Returns each chunk as one segment.

        Args:
            chunks: (sequences,) int64 in [0, len).
        """
        rows = self._index.chunks[chunks]
        starts, ends = self._index.pieces[rows[:, 0]], self._index.pieces[rows[:, 1]]
        return Segments(starts[:, None], (ends - starts)[:, None], np.zeros(len(chunks), dtype=np.int64))

    def draw_pairs(self, keys: np.ndarray, chunks: np.ndarray) -> Segments:
        """Splits each chunk into the two segments of a pair, as a function of key and chunk alone.

        - With probability 0.1 the target length is uniform in [2, max_tokens] instead of max_tokens. The chunk is then
          truncated after the sentence that reaches the target length.
        - Segment A is the first k of the chunk's n pieces, with k uniform in [1, n - 1].
        - With probability 0.5 segment B is the rest of the chunk. Otherwise, and always if the chunk has only one
          piece, B begins at a uniformly drawn piece of a uniformly drawn other document. It takes as many pieces as fit
          into the target length after A, at least one; a piece that does not fit is truncated.

        Args:
            keys: (sequences,) uint64, random key of each sequence.
            chunks: (sequences,) int64 in [0, len).
        """
        pieces = self._index.pieces
        draws = mix(keys[:, None], np.arange(6))
        first, last, own = self._index.chunks[chunks].T
        starts_a = pieces[first]

        short = uniform(draws[:, 0]) < SHORT_PROB
        target = np.where(short, 2 + random_integers(draws[:, 1], self.max_tokens - 1), self.max_tokens)
        # The first end that reaches the target is the one after the last end below it.
        below_target = _last_up_to(pieces, first[short], last[short], starts_a[short] + target[short] - 1)
        last[short] = np.minimum(last[short], below_target + 1)
        num_pieces = last - first
        middle = first + np.where(num_pieces > 1, 1 + random_integers(draws[:, 2], np.maximum(num_pieces - 1, 1)), 1)
        length_a = pieces[middle] - starts_a

        random_next = (num_pieces == 1) | (uniform(draws[:, 3]) < RANDOM_NEXT_PROB)
        room, drawn = (target - length_a)[random_next], draws[random_next]
        begin, document_end = self._draw_elsewhere(drawn[:, 4], drawn[:, 5], chunks[random_next], own[random_next])
        end = np.maximum(_last_up_to(pieces, begin, document_end, pieces[begin] + room), begin + 1)

        starts_b, length_b = pieces[middle], pieces[last] - pieces[middle]
        starts_b[random_next] = pieces[begin]
        length_b[random_next] = np.minimum(pieces[end] - pieces[begin], self.max_tokens - length_a[random_next])
        labels = np.where(random_next, RANDOM, FOLLOWS)
        return Segments(np.stack([starts_a, starts_b], axis=1), np.stack([length_a, length_b], axis=1), labels)

    def unused_fraction(self, keys: np.ndarray, chunks: np.ndarray) -> float:
        """Returns the share of the text of these chunks that their pairs do not use.

        Unused text is the rest of chunks with a random B, and text beyond a short target length. Each epoch has its own
        draws. (BERT's own script puts such a rest into the next sequence.)

        Args:
            keys: (sequences,) uint64, random key of each sequence.
            chunks: (sequences,) int64 in [0, len).
        """
        if not self.pairs:
            return 0.0
        drawn = self.draw_pairs(keys, chunks)
        used = drawn.lengths[:, 0].sum() + drawn.lengths[drawn.labels == FOLLOWS, 1].sum()
        return float(1 - used / self.single_segments(chunks).lengths.sum())

    def _draw_elsewhere(
        self, document_draws: np.ndarray, piece_draws: np.ndarray, chunks: np.ndarray, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a random piece of a document other than the chunk's own, and the end of that document's pieces."""
        lowest, highest = self._neighbours(chunks)
        other = lowest + random_integers(document_draws, highest - lowest)
        first, end = self._index.document_pieces[other + (other >= own)].T
        return first + random_integers(piece_draws, end - first), end

    def _neighbours(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first and the last document that can provide a second segment; the range includes the own one."""
        last_document = len(self._index.documents) - 1
        if self._neighbourhood is None:
            return np.zeros_like(chunks), np.full_like(chunks, last_document)
        first = chunks - chunks % self._neighbourhood
        last = np.minimum(first + self._neighbourhood, len(self)) - 1
        lowest, highest = self._index.chunks[first, 2], self._index.chunks[last, 2]
        # If one document fills its neighbourhood, the documents before and after it are added.
        alone = lowest == highest
        return np.maximum(lowest - alone, 0), np.minimum(highest + alone, last_document)


def _last_up_to(pieces: np.ndarray, begin: np.ndarray, end: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns the index of the last piece in [begin, end] that starts at or before the bound; `begin` always does.

    Bisects all ranges together. Unlike a search over all pieces, it reads only the part of the disk that holds the
    chunk. Each piece has at least one token, so `bound - pieces[begin]` pieces are enough.
    """
    low = begin.copy()
    high = np.minimum(end, begin + (bounds - pieces[begin]))
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high + 1) // 2
        fits = pieces[middle] <= bounds
        low = np.where(fits, middle, low)
        high = np.where(fits, high, middle - 1)
    return low
