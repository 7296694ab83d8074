"""Retrieval among the distinct pictures and captions of a split, in both directions. Similarities are cosines."""

from collections.abc import Sequence

import numpy as np

from framework.tasks.image_text.features import CAPTION, PICTURE, PairIds

CUTS = (1, 5, 10)
NUM_SHOWN = 3
"""Number of the most similar candidates that the report shows."""

_QUERIES_AT_ONCE = 512
"""Number of queries whose similarities with all candidates are in memory at the same time."""


class Retrieval:
    """Search for captions by pictures and for pictures by captions.

    Args:
        vectors: (2, hidden) vectors of each pair.
        records: Ids of each pair.

    Attributes:
        ranks: By direction ("caption" and "picture", the kind of the candidates): for each query id the rank of its
            first right candidate, from 1. Wrong candidates that are equally similar rank before it.
        similarities: By direction: for each query id the cosine of its most similar right candidate.
        top: By direction: for each query id the ids of the most similar candidates, at most NUM_SHOWN.
    """

    def __init__(self, vectors: Sequence[np.ndarray], records: Sequence[PairIds]) -> None:
        pictures, captions = (np.array([getattr(each, name) for each in records]) for name in ("picture", "caption"))
        self.ranks: dict[str, np.ndarray] = {}
        self.similarities: dict[str, np.ndarray] = {}
        self.top: dict[str, np.ndarray] = {}
        sides = {"caption": (pictures, PICTURE, captions, CAPTION), "picture": (captions, CAPTION, pictures, PICTURE)}
        for name, (queries, asking, answers, answering) in sides.items():
            asked, candidates = _distinct(vectors, queries, asking), _distinct(vectors, answers, answering)
            parts = [
                _search(asked[first : first + _QUERIES_AT_ONCE], candidates, queries - first, answers)
                for first in range(0, len(asked), _QUERIES_AT_ONCE)
            ]
            self.ranks[name], self.similarities[name], self.top[name] = map(np.concatenate, zip(*parts, strict=True))


def retrieval_scores(retrieval: Retrieval) -> dict[str, float]:
    """Returns recalls and median ranks.

    Returns:
        `caption_recall_at_K`, for K of 1, 5 and 10: share of pictures with a right caption among the first K, and
        `caption_median_rank`; the same of `picture` for captions that search for pictures; and `mean_recall`, the mean
        of the six recalls.
    """
    recalls = {
        f"{name}_recall_at_{k}": float((ranks <= k).mean()) for name, ranks in retrieval.ranks.items() for k in CUTS
    }
    medians = {f"{name}_median_rank": float(np.median(ranks)) for name, ranks in retrieval.ranks.items()}
    return {**recalls, **medians, "mean_recall": float(np.mean(list(recalls.values())))}


def _distinct(vectors: Sequence[np.ndarray], ids: np.ndarray, member: int) -> np.ndarray:
    """Returns (ids, hidden) float64 vectors of length 1, one per id, in the order of the ids."""
    _, first = np.unique(ids, return_index=True)
    stacked = np.stack([vectors[index][member] for index in first.tolist()]).astype(np.float64)
    return np.asarray(stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12))


def _search(
    asked: np.ndarray, candidates: np.ndarray, queries: np.ndarray, answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rank and the cosine of the first right candidate, and the top candidates, of each query.

    Args:
        asked: (queries, hidden) vectors of some queries.
        candidates: (candidates, hidden).
        queries: (pairs,) index in `asked` of each pair; others are ignored.
        answers: (pairs,) index in `candidates` of each pair.
    """
    similarities = asked @ candidates.T
    is_right = np.zeros(similarities.shape, dtype=bool)
    is_here = (queries >= 0) & (queries < len(asked))
    is_right[queries[is_here], answers[is_here]] = True
    own = np.where(is_right, similarities, -np.inf).max(axis=1)
    ranks = 1 + ((similarities >= own[:, None]) & ~is_right).sum(axis=1)
    count = min(NUM_SHOWN, len(candidates))
    top = np.argpartition(-similarities, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(-similarities, top, axis=1).argsort(axis=1, kind="stable")
    return ranks, own, np.take_along_axis(top, order, axis=1)
