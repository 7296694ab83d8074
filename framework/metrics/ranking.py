"""How well a search ranks what is relevant, in NumPy: every function gives one value for each query.

All take what `ranked_relevance` gives: (queries, candidates) bool, whether the candidate at each rank is relevant, best
first. Each query must have a relevant candidate.
"""

import numpy as np


def ranked_relevance(similarities: np.ndarray, is_relevant: np.ndarray) -> np.ndarray:
    """Puts candidates in the order of their similarity, the largest first, equal ones in the order given.

    Args:
        similarities: (queries, candidates).
        is_relevant: (queries, candidates) bool.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    return np.take_along_axis(is_relevant, order, axis=1)


def reciprocal_rank(ranked: np.ndarray) -> np.ndarray:
    """1 / rank of the first relevant candidate, counted from 1; its mean is the MRR (Voorhees 1999, TREC-8, 3)."""
    return 1.0 / (1.0 + ranked.argmax(axis=1))


def hit_rate(ranked: np.ndarray, k: int) -> np.ndarray:
    """1 where one of the first k is relevant, else 0."""
    return np.asarray(ranked[:, :k].any(axis=1), dtype=np.float64)


def recall(ranked: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant candidates that is among the first k."""
    return ranked[:, :k].sum(axis=1) / ranked.sum(axis=1)


def ndcg(ranked: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k (Järvelin, Kekäläinen 2002, section 2.2; gains 0 and 1).

    The sum of 1 / log2(1 + rank) over relevant candidates, divided by what the best order would have.
    """
    discounts = 1.0 / np.log2(2.0 + np.arange(ranked.shape[1]))[:k]
    best = np.cumsum(discounts)
    num_relevant = np.minimum(ranked.sum(axis=1), len(discounts))
    return (ranked[:, :k] * discounts).sum(axis=1) / best[num_relevant - 1]
