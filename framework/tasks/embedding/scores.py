"""Whole-split metrics of embeddings; similarities are cosines."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from framework.metrics.paired import average_ranks, correlation
from framework.metrics.ranking import hit_rate, ndcg, ranked_relevance, recall, reciprocal_rank
from framework.tasks.embedding.features import Searched
from framework.tasks.embedding.losses import ANCHOR, POSITIVE

_CUTS = (1, 5, 10)
_QUERIES_AT_ONCE = 512
"""Their similarities with all candidates are in memory together."""


def pair_scores(vectors: Sequence[np.ndarray], references: Sequence[float], size: int) -> dict[str, float]:
    """`spearman` and `pearson` of the cosines of pairs with the scores; NaN where either side is constant.

    Args:
        vectors: (2, hidden) of each pair.
        references: Its score.
        size: Channels that are compared, from the first on.
    """
    cosines = torch.from_numpy(pair_cosines(vectors, size))
    true = torch.tensor(references, dtype=torch.float64)
    return {
        "spearman": float(correlation(average_ranks(cosines), average_ranks(true))),
        "pearson": float(correlation(cosines, true)),
    }


def pair_cosines(vectors: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(pairs,) float64 cosines of the two texts of each, by their first `size` channels."""
    whole = np.stack(vectors)
    first, second = (_unit(whole[:, member, :size]) for member in (ANCHOR, POSITIVE))
    return np.asarray((first * second).sum(axis=1))


def search_scores(vectors: Sequence[np.ndarray], records: Sequence[Searched], size: int) -> dict[str, float]:
    """Means over the queries that have an answer among the candidates.

    Args:
        vectors: (sequences, hidden) of each item.
        records: What each is.
        size: Channels that are compared, from the first on.

    Returns:
        `mrr`, `hit_rate_at_K` and `recall_at_K` for K 1, 5 and 10, and `ndcg_at_10`, in [0, 1]; NaN without queries.
    """
    _, found = search_values(vectors, records, size)
    return {name: float(values.mean()) if len(values) else float("nan") for name, values in found.items()}


def search_values(
    vectors: Sequence[np.ndarray], records: Sequence[Searched], size: int
) -> tuple[list[int], dict[str, np.ndarray]]:
    """What `search_scores` takes the means of.

    Returns:
        The places of the queries that have an answer among the candidates, and of each metric their (queries,) values.
    """
    searched = [place for place, record in enumerate(records) if record.candidate is not None]
    column_of = {place: column for column, place in enumerate(searched)}
    candidates = _unit(np.stack([vectors[place][records[place].candidate][:size] for place in searched]))
    columns: dict[int, list[int]] = defaultdict(list)
    for place, column in column_of.items():
        columns[records[place].answer].append(column)
    asking = [(place, record.query) for place, record in enumerate(records) if record.query is not None]
    answers: dict[int, set[int]] = defaultdict(set)
    for place, query in asking:
        answers[query].add(records[place].answer)

    places: list[int] = []
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for first in range(0, len(asking), _QUERIES_AT_ONCE):
        chunk = asking[first : first + _QUERIES_AT_ONCE]
        similarities = _unit(np.stack([vectors[place][ANCHOR][:size] for place, _ in chunk])) @ candidates.T
        is_relevant = np.zeros(similarities.shape, dtype=bool)
        for row, (place, query) in enumerate(chunk):
            for answer in answers[query]:
                is_relevant[row, columns[answer]] = True
            if records[place].candidate == ANCHOR:
                # A text does not find itself.
                is_relevant[row, column_of[place]] = False
                similarities[row, column_of[place]] = -np.inf
        is_answered = is_relevant.any(axis=1)
        places += [chunk[row][0] for row in np.flatnonzero(is_answered).tolist()]
        for name, values in _values(ranked_relevance(similarities[is_answered], is_relevant[is_answered])).items():
            found[name].append(values)
    return places, {name: np.concatenate(values) for name, values in found.items()}


def _values(ranked: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric of each query."""
    by_cut = {"hit_rate": hit_rate, "recall": recall}
    return {
        "mrr": reciprocal_rank(ranked),
        **{f"{name}_at_{k}": metric(ranked, k) for name, metric in by_cut.items() for k in _CUTS},
        "ndcg_at_10": ndcg(ranked, 10),
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(rows, channels) of length 1, float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
