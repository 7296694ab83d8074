"""Ranking metrics of lists by query, and the error analysis with the ranking of each query."""

from collections.abc import Sequence

import numpy as np

from framework.metrics.ranking import average_precision, ndcg, pad_lists, rank_gains, reciprocal_rank
from framework.tasks.examination import Examination, ExaminedRow, ItemResults
from framework.tasks.reranking.candidates import CandidateList

_NUM_SHOWN = 10
"""Number of the best candidates that the report shows."""


def metrics_by_list(
    lists: Sequence[CandidateList], scores: Sequence[Sequence[float]], top_k: int
) -> dict[str, np.ndarray]:
    """Returns `ndcg_at_K`, `mrr_at_K` and `map` of each list: (lists,) in [0, 1].

    The definitions are those of trec_eval (`framework.metrics.ranking`). Of equal scores the less relevant candidate
    ranks first, so that a model which scores all candidates alike gets the lowest values.

    Args:
        lists: Lists with known relevance.
        scores: Score of each candidate of each list.
        top_k: Number K of ranks that count for nDCG and MRR.
    """
    relevance, ordered = [], []
    for each, own in zip(lists, scores, strict=True):
        gains = np.asarray(each.relevance, dtype=np.float64)
        order = np.argsort(gains, kind="stable")
        relevance.append(gains[order])
        ordered.append(np.asarray(own, dtype=np.float64)[order])
    ranked = rank_gains(pad_lists(ordered, -np.inf), pad_lists(relevance, 0.0))
    return {
        f"ndcg_at_{top_k}": ndcg(ranked, top_k),
        f"mrr_at_{top_k}": reciprocal_rank(ranked, top_k),
        "map": average_precision(ranked),
    }


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Returns the rank of each candidate, from 1 for the largest score; equal ones are ranked in their order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    ranks = [0] * len(order)
    for rank, index in enumerate(order, start=1):
        ranks[index] = rank
    return ranks


def examine_lists(lists: Sequence[CandidateList], results: ItemResults, top_k: int) -> Examination:
    """Builds one row per list, whose score is its nDCG.

    Args:
        lists: Lists with known relevance.
        results: Model results for the lists.
        top_k: Number of ranks that count.
    """
    name = f"ndcg_at_{top_k}"
    values = metrics_by_list(lists, results.decoded, top_k)[name].tolist()
    rows = []
    for index, (each, scores) in enumerate(zip(lists, results.decoded, strict=True)):
        relevance = each.relevance or ()
        order = sorted(range(len(scores)), key=ranks_of(scores).__getitem__)
        best = max(range(len(relevance)), key=relevance.__getitem__)
        shown = [f"{scores[place]:.3f} ({relevance[place]:g}) {each.documents[place]}" for place in order[:_NUM_SHOWN]]
        rows.append(
            ExaminedRow(
                length=int(results.lengths[index]),
                loss=results.loss(index),
                score=values[index],
                expected=each.documents[best],
                predicted=each.documents[order[0]],
                text="\n".join([each.query, *(f"{rank}. {line}" for rank, line in enumerate(shown, start=1))]),
                location=each.location,
            )
        )
    return Examination(rows, f"nDCG at {top_k}")
