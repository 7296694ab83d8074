"""Ranking metrics in NumPy, for binary and graded relevance. Every function returns one value per query.

The definitions are those of trec_eval: a candidate is relevant if its gain is above 0, nDCG has linear gains and the
discount log2(1 + rank), recall and average precision divide by all relevant candidates, also those that are not ranked,
and a query without any has the value 0. trec_eval orders equal scores by falling document id, here they keep their
order: give candidates in falling order of their ids for equal numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RankedGains:
    """Gains of ranked candidates.

    Attributes:
        gains: (queries, ranks) float64, gain of the candidate at each rank, best rank first; 0: it is not relevant, or
            the list is shorter.
        ideal: (queries, relevant) float64, gains of all relevant candidates of each query, in falling order; 0 beyond
            the last one.
    """

    gains: np.ndarray
    ideal: np.ndarray


def rank_gains(scores: np.ndarray, gains: np.ndarray, ideal: np.ndarray | None = None) -> RankedGains:
    """Sorts gains by falling score of the candidates. Equal candidates keep their order.

    Args:
        scores: (queries, candidates), for lists of different lengths from `pad_lists` with the filler -inf.
        gains: (queries, candidates) relevance of the candidates, as numbers or bool. Negative numbers count as 0.
        ideal: (queries, relevant) gains of all relevant candidates of each query in any order, if others than the
            scored ones exist; None: there are no others.
    """
    gains = np.maximum(np.asarray(gains, dtype=np.float64), 0.0)
    order = np.argsort(-scores, axis=1, kind="stable")
    best = gains if ideal is None else np.maximum(np.asarray(ideal, dtype=np.float64), 0.0)
    return RankedGains(np.take_along_axis(gains, order, axis=1), -np.sort(-best, axis=1))


def pad_lists(lists: Sequence[Sequence[float] | np.ndarray], filler: float) -> np.ndarray:
    """Returns (lists, longest) float64: the lists, completed at their ends by a filler."""
    padded = np.full((len(lists), max(map(len, lists), default=0)), filler)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return padded


def reciprocal_rank(ranked: RankedGains, k: int | None = None) -> np.ndarray:
    """Returns 1 / rank of the first relevant candidate, from rank 1; 0 if none is among the first k (None: all).

    Its mean is the MRR (Voorhees 1999, TREC-8, section 3).
    """
    is_relevant = ranked.gains[:, :k] > 0
    return np.where(is_relevant.any(axis=1), 1.0 / (1.0 + is_relevant.argmax(axis=1)), 0.0)


def hit_rate(ranked: RankedGains, k: int) -> np.ndarray:
    """Returns 1 if one of the first k candidates is relevant, else 0."""
    return np.asarray((ranked.gains[:, :k] > 0).any(axis=1), dtype=np.float64)


def precision(ranked: RankedGains, k: int) -> np.ndarray:
    """Returns the number of relevant candidates among the first k, divided by k."""
    return np.asarray((ranked.gains[:, :k] > 0).sum(axis=1) / k)


def recall(ranked: RankedGains, k: int) -> np.ndarray:
    """Returns the share of relevant candidates that are among the first k."""
    return _ratio((ranked.gains[:, :k] > 0).sum(axis=1), (ranked.ideal > 0).sum(axis=1))


def average_precision(ranked: RankedGains, k: int | None = None) -> np.ndarray:
    """Returns the mean over relevant candidates of the precision at their rank; 0 beyond rank k (None: no limit).

    Its mean is the MAP (Manning et al. 2008, Introduction to Information Retrieval, section 8.4).
    """
    is_relevant = ranked.gains[:, :k] > 0
    precisions = is_relevant.cumsum(axis=1) / np.arange(1.0, is_relevant.shape[1] + 1)
    return _ratio((precisions * is_relevant).sum(axis=1), (ranked.ideal > 0).sum(axis=1))


def ndcg(ranked: RankedGains, k: int | None = None) -> np.ndarray:
    """Returns the normalised discounted cumulative gain of the first k candidates (None: all).

    Source: Järvelin, Kekäläinen 2002, section 2.2. It is the sum of gain / log2(1 + rank), divided by that of the best
    order of all relevant candidates.
    """
    return _ratio(_discounted(ranked.gains[:, :k]), _discounted(ranked.ideal[:, :k]))


def _discounted(gains: np.ndarray) -> np.ndarray:
    return np.asarray((gains / np.log2(2.0 + np.arange(gains.shape[1]))).sum(axis=1))


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Divides, with 0 for a query without relevant candidates."""
    return np.divide(numerators, denominators, out=np.zeros(len(numerators)), where=denominators > 0)
