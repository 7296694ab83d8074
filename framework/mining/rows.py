"""Mines the negatives of pairs: searches, rescores and chooses, for a range of pairs at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from framework.mining.texts import MinedTexts
from framework.retrieval.negatives import Candidates, Rescore, Rules, choose, in_window, rescored
from framework.retrieval.search import Nearest

PAIRS_AT_ONCE = 1024
"""Number of pairs that are mined together and written to one file."""


class Search(Protocol):
    """Function that finds the nearest documents."""

    def __call__(self, queries: np.ndarray, *, k: int) -> Nearest:
        """Returns the k nearest documents of each query, given (queries, hidden) vectors."""


@dataclass(frozen=True, eq=False)
class Miner:
    """Miner of all pairs.

    Attributes:
        texts: Queries, documents and pairs.
        rules: Choice of the negatives.
        queries: (queries, hidden) fp32 vectors.
        documents: (documents, hidden) fp32 vectors of the documents that may be negatives.
        positives: (positives, hidden) fp32 vectors of the other documents, which are positives only.
        search: Search among the documents.
        rescore: Scores of a reranker; None: cosines.
        has_scores: True adds the scores to the rows.
    """

    texts: MinedTexts
    rules: Rules
    queries: np.ndarray
    documents: np.ndarray
    positives: np.ndarray
    search: Search
    rescore: Rescore | None = None
    has_scores: bool = False

    def rows(self, first: int) -> list[dict[str, Any]]:
        """Returns the rows of PAIRS_AT_ONCE pairs, from the given index on.

        A row has `query`, `positive`, the list `negatives` and, if requested, `scores`: of the positive, then of the
        negatives. The list is shorter, or empty, if the rules leave too few documents.
        """
        pairs = self._candidates(self.texts.pairs[first : first + PAIRS_AT_ONCE])
        if self.rescore is not None:
            pairs = rescored(pairs, self.rescore)
        rows: list[dict[str, Any]] = []
        for index, pair in enumerate(pairs, start=first):
            places = choose(pair, self.rules, index)
            documents = [self.texts.documents[document] for document in pair.documents[places]]
            row = {"query": self.texts.queries[pair.query], "positive": self.texts.documents[pair.positive]}
            scores = [pair.positive_score, *pair.scores[places].tolist()]
            rows.append({**row, "negatives": documents, **({"scores": scores} if self.has_scores else {})})
        return rows

    def _candidates(self, pairs: Sequence[tuple[int, int]]) -> list[Candidates]:
        numbers, positives = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
        unique, row_of = np.unique(numbers, return_inverse=True)
        vectors = self.queries[unique]
        # The known answers of a query have no rank.
        num_known = max(len(self.texts.known[query]) for query in unique)
        found = self.search(vectors, k=self.rules.range_max + num_known)
        cosines = np.einsum("ij,ij->i", vectors[row_of].astype(np.float64), self._documents(positives))
        candidates = []
        for row, query, positive, cosine in zip(row_of, numbers.tolist(), positives.tolist(), cosines, strict=True):
            own = in_window(found.indices[row], found.scores[row], self.texts.known[query], self.rules)
            candidates.append(Candidates(query, positive, float(cosine), *own))
        return candidates

    def _documents(self, indices: np.ndarray) -> np.ndarray:
        """Returns (indices, hidden) fp32 vectors of documents."""
        own = indices < self.texts.num_documents
        vectors = np.empty((len(indices), self.documents.shape[1]), dtype=np.float32)
        vectors[own] = self.documents[indices[own]]
        vectors[~own] = self.positives[indices[~own] - self.texts.num_documents]
        return vectors
