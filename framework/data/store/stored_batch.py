"""Document boundaries that a store keeps for one record batch, without the ids."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Boundaries of the documents of one record batch.

    Attributes:
        sentence_lengths: (sentences,) int32 tokens of each sentence.
        document_sentences: (documents,) int64 sentences of each document.
        text_hashes: (documents,) uint64 hash of each text.
        group: Row group of a streamed store that holds the texts; None if ids are stored.
        rows: (documents,) int32 index of each text in the row group of a streamed store; None if ids are stored.
    """

    sentence_lengths: np.ndarray
    document_sentences: np.ndarray
    text_hashes: np.ndarray
    group: int | None
    rows: np.ndarray | None

    @property
    def num_tokens(self) -> int:
        """Total tokens of all documents."""
        return int(self.sentence_lengths.sum(dtype=np.int64))
