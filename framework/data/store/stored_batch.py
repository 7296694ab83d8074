"""What a store keeps of the documents of one record batch, their ids aside."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """The boundaries of the documents of one record batch.

    Attributes:
        sentence_lengths: (sentences,) int32 tokens of each.
        document_sentences: (documents,) int64 sentences of each.
        text_hashes: (documents,) uint64.
        group: Of a streamed store, the row group that holds the texts; None elsewhere.
        rows: Of a streamed store, (documents,) int32 places among the texts of the row group; None elsewhere.
    """

    sentence_lengths: np.ndarray
    document_sentences: np.ndarray
    text_hashes: np.ndarray
    group: int | None
    rows: np.ndarray | None

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.sentence_lengths.sum(dtype=np.int64))
