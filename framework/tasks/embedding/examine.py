"""Error analysis of embeddings: pairs with a misranked similarity, queries with a low-ranked answer."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from framework.metrics.correlation import average_ranks
from framework.tasks.embedding.features import SearchRole
from framework.tasks.embedding.scores import Index, pair_cosines, search_values
from framework.tasks.embedding.search_sets import SearchSource, query_scores
from framework.tasks.examination import Examination, ExaminedRow, ItemResults


def examine_pairs(references: Sequence[float], results: ItemResults) -> Examination:
    """Builds one row per pair. Its score is 1 minus the relative distance between the ranks of its number and cosine.

    Args:
        references: Number of each pair.
        results: Model results for the pairs.
    """
    cosines = pair_cosines(results.decoded, results.decoded[0].shape[1])
    numbers = np.stack([np.asarray(references, dtype=np.float64), cosines], axis=1)
    ranks = average_ranks(torch.from_numpy(numbers[:, 0])), average_ranks(torch.from_numpy(numbers[:, 1]))
    distances = ((ranks[0] - ranks[1]).abs() / max(1, len(numbers) - 1)).tolist()
    rows = [
        ExaminedRow(
            length=int(length),
            score=1.0 - distance,
            expected=f"{reference:g}",
            predicted=f"cosine {cosine:.3f}",
        )
        for length, distance, (reference, cosine) in zip(results.lengths, distances, numbers.tolist(), strict=True)
    ]
    return Examination(rows, "agreement of ranks", numbers=numbers)


def examine_search(records: Sequence[SearchRole], results: ItemResults, index: Index) -> Examination:
    """Builds one row per item. The score of a query with an answer is the reciprocal rank of its first correct text.

    Args:
        records: Search role of each item.
        results: Model results for the items.
        index: Function from decoded candidates to their scorer, as in `search_values`.
    """
    items, values = search_values(results.decoded, records, index)
    return _ranks_of_queries(dict(zip(items, values["mrr"].tolist(), strict=True)), results)


def examine_sets(source: SearchSource, results: ItemResults, index: Index) -> Examination:
    """Builds one row per item of sets of judged queries, as in `examine_search`.

    Args:
        source: The split.
        results: Model results for its items.
        index: Function from decoded candidates to their scorer.
    """
    reciprocal_ranks: dict[int, float] = {}
    for each in source.sets:
        values = query_scores(results.decoded, each, index)["mrr"]
        reciprocal_ranks |= dict(zip(each.queries.tolist(), values.tolist(), strict=True))
    return _ranks_of_queries(reciprocal_ranks, results)


def _ranks_of_queries(reciprocal_ranks: Mapping[int, float], results: ItemResults) -> Examination:
    """Builds one row per item; the reciprocal rank of a query is its score."""
    rows = []
    for item, length in enumerate(results.lengths.tolist()):
        score = reciprocal_ranks.get(item)
        rank = "" if score is None else "no correct text found"
        if score:
            rank = f"first correct text at rank {round(1 / score):,}"
        rows.append(ExaminedRow(length, score=score, expected="" if score is None else "rank 1", predicted=rank))
    return Examination(rows, "reciprocal rank")
