"""Builds chunks without a store, from the sentence lengths of documents."""

import numpy as np

from framework.data.sentence_pairs import SentenceChunks
from framework.data.store.sequence_index import Division, divide_in_memory
from framework.data.store.stored_batch import StoredBatch


class Boundaries:
    """Stand-in for a store that has only the sentence lengths of its documents."""

    def __init__(self, documents: list[list[int]], used: list[int] | None = None, batch_documents: int = 3) -> None:
        self.documents, self.batch_documents = documents, batch_documents
        self.used = set(range(len(documents)) if used is None else used)

    def batches(self):
        for first in range(0, len(self.documents), self.batch_documents):
            here = self.documents[first : first + self.batch_documents]
            yield StoredBatch(
                np.array([length for document in here for length in document], dtype=np.int32),
                np.array([len(document) for document in here]),
                np.arange(first, first + len(here), dtype=np.uint64),
                None,
                None,
            )

    def splits(self, text_hashes):
        return {"train": np.array([int(number) in self.used for number in text_hashes])}


def chunks_of(
    documents: list[list[int]],
    max_tokens: int,
    pairs: bool,
    used: list[int] | None = None,
    neighbourhood: int | None = None,
) -> SentenceChunks:
    boundaries, division = Boundaries(documents, used), Division(max_tokens, pairs)
    index = divide_in_memory(boundaries, division, boundaries.splits)["train"]
    return SentenceChunks(index, division, neighbourhood)
