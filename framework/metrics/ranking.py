"""Ranking metrics in NumPy. Every function returns one value per query.

All take the result of `ranked_relevance`: (queries, candidates) bool, True if the candidate at a rank is relevant, best
rank first. Each query must have a relevant candidate.
"""

import numpy as np


def ranked_relevance(similarities: np.ndarray, is_relevant: np.ndarray) -> np.ndarray:
    """Sorts relevance by falling similarity of the candidates. Equal candidates keep their order.

    Args:
        similarities: (queries, candidates).
        is_relevant: (queries, candidates) bool.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    return np.take_along_axis(is_relevant, order, axis=1)


def reciprocal_rank(ranked: np.ndarray) -> np.ndarray:
    """Returns 1 / rank of the first relevant candidate, from rank 1; its mean is the MRR (Voorhees 1999, TREC-8, 3)."""
    return 1.0 / (1.0 + ranked.argmax(axis=1))


def hit_rate(ranked: np.ndarray, k: int) -> np.ndarray:
    """Returns 1 if one of the first k candidates is relevant, else 0."""
    return np.asarray(ranked[:, :k].any(axis=1), dtype=np.float64)


def recall(ranked: np.ndarray, k: int) -> np.ndarray:
    """Returns the share of relevant candidates among the first k."""
    return ranked[:, :k].sum(axis=1) / ranked.sum(axis=1)


def ndcg(ranked: np.ndarray, k: int) -> np.ndarray:
    """Returns the normalised discounted cumulative gain of the first k candidates, with gains 0 and 1.

    Source: Järvelin, Kekäläinen 2002, section 2.2. It is the sum of 1 / log2(1 + rank) over relevant candidates,
    divided by the sum of the best order.
    """
    discounts = 1.0 / np.log2(2.0 + np.arange(ranked.shape[1]))[:k]
    best = np.cumsum(discounts)
    num_relevant = np.minimum(ranked.sum(axis=1), len(discounts))
    return (ranked[:, :k] * discounts).sum(axis=1) / best[num_relevant - 1]
