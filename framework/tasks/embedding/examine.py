"""Errors of embeddings: pairs whose similarity is out of order, queries whose answers others come before."""

from collections.abc import Sequence

import numpy as np
import torch

from framework.metrics.paired import average_ranks
from framework.tasks.embedding.features import Searched
from framework.tasks.embedding.scores import pair_cosines, search_values
from framework.tasks.examination import Examination, ExaminedRow, FoundItems


def examine_pairs(references: Sequence[float], found: FoundItems) -> Examination:
    """A row for each pair; its score is 1 minus how far the ranks of its number and of its cosine are apart.

    Args:
        references: The number of each pair.
        found: For the pairs.
    """
    cosines = pair_cosines(found.decoded, found.decoded[0].shape[1])
    numbers = np.stack([np.asarray(references, dtype=np.float64), cosines], axis=1)
    ranks = average_ranks(torch.from_numpy(numbers[:, 0])), average_ranks(torch.from_numpy(numbers[:, 1]))
    apart = ((ranks[0] - ranks[1]).abs() / max(1, len(numbers) - 1)).tolist()
    rows = [
        ExaminedRow(
            length=int(length),
            score=1.0 - distance,
            expected=f"{reference:g}",
            predicted=f"cosine {cosine:.3f}",
        )
        for length, distance, (reference, cosine) in zip(found.lengths, apart, numbers.tolist(), strict=True)
    ]
    return Examination(rows, "agreement of ranks", numbers=numbers)


def examine_search(records: Sequence[Searched], found: FoundItems) -> Examination:
    """A row for each item; of a query that has an answer the score is the reciprocal rank of the first right text.

    Args:
        records: What each item is.
        found: For the items.
    """
    places, values = search_values(found.decoded, records, found.decoded[0].shape[1])
    reciprocal_ranks = dict(zip(places, values["mrr"].tolist(), strict=True))
    rows = []
    for place, length in enumerate(found.lengths.tolist()):
        score = reciprocal_ranks.get(place)
        told = "" if score is None else f"a right text is the {round(1 / score):,}. that is found"
        rows.append(ExaminedRow(length, score=score, expected="" if score is None else "the 1.", predicted=told))
    return Examination(rows, "reciprocal rank")
