"""Losses of embeddings, each over all texts of a step; cosines are taken of what is given, of any length."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

Rows = Mapping[str, Tensor]
"""`embeddings` (rows, hidden) fp32; `members`, `queries`, `texts` (rows,) int64 and `scores` (rows,) fp32, which are
targets of `framework.tasks.embedding.features`."""

ANCHOR, POSITIVE = 0, 1
"""Members of an item; those behind are hard negatives."""

NO_QUERY = -1


def info_nce(rows: Rows, temperature: float) -> Tensor:
    """Each anchor must find its positive among all positives and hard negatives of the step, and the other way round.

    -log(exp(cos(a, p) / t) / sum over c of exp(cos(a, c) / t)): van den Oord et al. 2018 (arXiv:1807.03748, equation
    4) with the cosine and temperature of Chen et al. 2020 (arXiv:2002.05709, equation 1), hard negatives as in Gao et
    al. 2021 (arXiv:2104.08821, equation 5). Departure: texts known to belong to an anchor are none of its negatives
    (`is_known_match`).

    Args:
        rows: With as many positives as anchors, in the same order.
        temperature: t.

    Returns:
        (2,) the sum over anchors; and the sum over positives, each of which must find its anchor among all anchors.
    """
    is_asked = rows["queries"] != NO_QUERY
    anchor = {name: value[is_asked & (rows["members"] == ANCHOR)] for name, value in rows.items()}
    is_candidate = is_asked & (rows["members"] != ANCHOR)
    # Positives first, so that the positive of anchor i is candidate i.
    order = (rows["members"][is_candidate] != POSITIVE).long().argsort(stable=True)
    candidate = {name: value[is_candidate][order] for name, value in rows.items()}
    num_anchors = len(anchor["texts"])
    if num_anchors == 0:
        # Of an empty dim there is no logsumexp.
        return rows["embeddings"].sum() * rows["embeddings"].new_zeros(2)
    vectors = normalize(anchor["embeddings"], dim=1), normalize(candidate["embeddings"], dim=1)
    scores = (vectors[0] @ vectors[1].T / temperature).masked_fill(is_known_match(anchor, candidate), -torch.inf)
    own = scores.diagonal()
    forward = (scores.logsumexp(dim=1) - own).sum()
    backward = (scores[:, :num_anchors].logsumexp(dim=0) - own).sum()
    return torch.stack([forward, backward])


def is_known_match(anchor: Rows, candidate: Rows) -> Tensor:
    """Which candidates belong to an anchor, but for its own positive: (anchors, candidates) bool.

    Those are texts equal to the anchor, and texts equal to a positive of the same query anywhere in the step; of
    labelled texts all of the same label.

    Args:
        anchor: (anchors,) `queries` and `texts`.
        candidate: (candidates,) `texts`; the first ones are the positives of the anchors.
    """
    texts = candidate["texts"]
    answers = texts[: len(anchor["texts"]), None] == texts[None]
    same_query = anchor["queries"][:, None] == anchor["queries"][None]
    # A product of 0 and 1 counts the positives of the query that are equal to the candidate.
    is_match = (anchor["texts"][:, None] == texts[None]) | (same_query.float() @ answers.float() > 0)
    return is_match.fill_diagonal_(False)


def cosent(rows: Rows, temperature: float) -> Tensor:
    """Of any two pairs of texts, the one with the higher score must have the higher cosine.

    log(1 + sum over pairs i, j with score(i) > score(j) of exp((cos(j) - cos(i)) / t)): Su 2022, "CoSENT: a more
    efficient sentence embedding scheme than Sentence-BERT", equation 6 (https://kexue.fm/archives/8847), which is the
    `CoSENTLoss` of sentence-transformers.

    Args:
        rows: Anchor and positive are the two texts of a pair.
        temperature: t.

    Returns:
        This one value of the step, times the pairs: their count is the denominator.
    """
    first, second = (rows["embeddings"][rows["members"] == member] for member in (ANCHOR, POSITIVE))
    references = rows["scores"][rows["members"] == ANCHOR]
    cosines = (normalize(first, dim=1) * normalize(second, dim=1)).sum(dim=1) / temperature
    is_ordered = references[:, None] > references[None]
    differences = (cosines[None] - cosines[:, None])[is_ordered]
    return torch.cat([differences.new_zeros(1), differences]).logsumexp(dim=0) * len(references)


def mean_over_sizes(loss: Callable[[Rows], Tensor], rows: Rows, sizes: Sequence[int]) -> Tensor:
    """The mean of a loss over embeddings cut to their first so many channels.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147, equation 1, all sizes weighing the
    same). The cut vectors get length 1 again, as cosines have it.

    Args:
        loss: From rows to a tensor.
        rows: Of the step.
        sizes: Channels.
    """
    values = [loss({**rows, "embeddings": rows["embeddings"][:, :size]}) for size in sizes]
    return torch.stack(values).mean(dim=0)
