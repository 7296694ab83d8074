"""Whole-split metrics of texts that are compared with each other."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from framework.metrics.correlation import average_ranks, correlation
from framework.metrics.ranking import RankedGains, hit_rate, ndcg, rank_gains, recall, reciprocal_rank
from framework.tasks.embedding.features import SearchRole
from framework.tasks.embedding.losses import ANCHOR, POSITIVE

Scorer = Callable[[Sequence[Any]], np.ndarray]
"""Function from the decoded texts of queries to (queries, candidates) float64 scores of fixed candidates."""

Index = Callable[[Sequence[Any]], Scorer]
"""Function from decoded candidates to their scorer, such as `cosine_scorer`."""

_CUTS = (1, 5, 10)
_QUERIES_AT_ONCE = 512
"""Number of queries whose similarities with all candidates are in memory at the same time."""


def pair_scores(vectors: Sequence[np.ndarray], references: Sequence[float], size: int) -> dict[str, float]:
    """Returns the `spearman` and `pearson` correlation of cosines and scores. NaN if either is constant.

    Args:
        vectors: (2, hidden) vectors of each pair.
        references: Score of each pair.
        size: Number of leading channels to compare.
    """
    cosines = torch.from_numpy(pair_cosines(vectors, size))
    true = torch.tensor(references, dtype=torch.float64)
    return {
        "spearman": float(correlation(average_ranks(cosines), average_ranks(true))),
        "pearson": float(correlation(cosines, true)),
    }


def pair_cosines(vectors: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns (pairs,) float64 cosines of the two texts of each pair, over the first `size` channels."""
    stacked = np.stack(vectors)
    first, second = (_unit(stacked[:, member, :size]) for member in (ANCHOR, POSITIVE))
    return np.asarray((first * second).sum(axis=1))


def cosine_scorer(candidates: Sequence[np.ndarray], size: int) -> Scorer:
    """Returns a function that computes cosines with candidates.

    Args:
        candidates: (hidden,) vector of each candidate.
        size: Number of leading channels to compare.
    """
    units = _unit(np.stack(candidates)[:, :size])
    return lambda queries: _unit(np.stack(queries)[:, :size]) @ units.T


def search_scores(decoded: Sequence[Any], records: Sequence[SearchRole], index: Index) -> dict[str, float]:
    """Averages search metrics over the queries that have an answer among the candidates.

    Args:
        decoded: Decoded texts of each item.
        records: Search role of each item.
        index: Function from the decoded candidates to their scorer, such as `cosine_scorer`.

    Returns:
        `mrr`, `hit_rate_at_K` and `recall_at_K` for K 1, 5 and 10, and `ndcg_at_10`, in [0, 1]; NaN without queries.
    """
    _, by_metric = search_values(decoded, records, index)
    return {name: float(values.mean()) if len(values) else float("nan") for name, values in by_metric.items()}


def search_values(
    decoded: Sequence[Any], records: Sequence[SearchRole], index: Index
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Computes the values that `search_scores` averages.

    Returns:
        The indices of the queries that have an answer among the candidates, and their (queries,) values per metric.
    """
    candidate_indices = [item for item, record in enumerate(records) if record.candidate is not None]
    column_of = {item: column for column, item in enumerate(candidate_indices)}
    scorer = index([decoded[item][records[item].candidate] for item in candidate_indices])
    columns: dict[int, list[int]] = defaultdict(list)
    for item, column in column_of.items():
        columns[records[item].answer].append(column)
    queries = [(item, record.query) for item, record in enumerate(records) if record.query is not None]
    answers: dict[int, set[int]] = defaultdict(set)
    for item, query in queries:
        answers[query].add(records[item].answer)

    indices: list[int] = []
    by_metric: dict[str, list[np.ndarray]] = defaultdict(list)
    for first in range(0, len(queries), _QUERIES_AT_ONCE):
        chunk = queries[first : first + _QUERIES_AT_ONCE]
        similarities = scorer([decoded[item][ANCHOR] for item, _ in chunk])
        is_relevant = np.zeros(similarities.shape, dtype=bool)
        for row, (item, query) in enumerate(chunk):
            for answer in answers[query]:
                is_relevant[row, columns[answer]] = True
            if records[item].candidate == ANCHOR:
                # Exclude the query itself from its candidates.
                is_relevant[row, column_of[item]] = False
                similarities[row, column_of[item]] = -np.inf
        is_answered = is_relevant.any(axis=1)
        indices += [chunk[row][0] for row in np.flatnonzero(is_answered).tolist()]
        for name, values in _values(rank_gains(similarities[is_answered], is_relevant[is_answered])).items():
            by_metric[name].append(values)
    return indices, {name: np.concatenate(values) for name, values in by_metric.items()}


def _values(ranked: RankedGains) -> dict[str, np.ndarray]:
    """Computes (queries,) values of each metric."""
    by_cut = {"hit_rate": hit_rate, "recall": recall}
    return {
        "mrr": reciprocal_rank(ranked),
        **{f"{name}_at_{k}": metric(ranked, k) for name, metric in by_cut.items() for k in _CUTS},
        "ndcg_at_10": ndcg(ranked, 10),
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1, in float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
