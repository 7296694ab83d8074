"""Embedding losses over all texts of a step. They compute cosines, so embeddings need not have length 1."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

Rows = Mapping[str, Tensor]
"""Rows of a step: `embeddings` (rows, hidden) fp32; `members`, `queries`, `texts` (rows,) int64 and `scores` (rows,)
fp32, which are targets of `framework.tasks.embedding.features`."""

ANCHOR, POSITIVE = 0, 1
"""Indices of the sequences of an item. Later sequences are hard negatives."""

NO_QUERY = -1

FITTING = {"scored": "similarity", "single": "simcse", "matches": "contrastive", "labelled": "contrastive"}
"""Objective by kind of rows. Matches with the scores of a teacher may have another one."""


def term_weights(objective: str, symmetric: bool) -> dict[str, float]:
    """Returns the weights of the loss terms of an objective."""
    if objective == "similarity":
        return {"cosent": 1.0}
    if objective in ("contrastive", "simcse"):
        return {"contrast": 0.5, "reverse_contrast": 0.5} if symmetric else {"contrast": 1.0}
    return {objective: 1.0}


def info_nce(rows: Rows, temperature: float | Tensor) -> Tensor:
    """InfoNCE: each anchor must score its positive above all positives and hard negatives of the step, and vice versa.

    -log(exp(cos(a, p) / t) / sum over c of exp(cos(a, c) / t)): van den Oord et al. 2018 (arXiv:1807.03748, equation
    4) with the cosine and temperature of Chen et al. 2020 (arXiv:2002.05709, equation 1), hard negatives as in Gao et
    al. 2021 (arXiv:2104.08821, equation 5). Departure: a known match of an anchor is never one of its negatives
    (`is_known_match`).

    Args:
        rows: Rows with as many positives as anchors, in the same order.
        temperature: Temperature t; a tensor of one element if it is learned.

    Returns:
        (2,): the sum over anchors, and the sum over positives, each of which is compared with all anchors.
    """
    anchor, candidate = anchors_and_candidates(rows)
    if len(anchor["texts"]) == 0:
        # logsumexp is undefined over an empty dim.
        return rows["embeddings"].sum() * rows["embeddings"].new_zeros(2)
    vectors = normalize(anchor["embeddings"], dim=1), normalize(candidate["embeddings"], dim=1)
    return contrast(vectors[0] @ vectors[1].T / temperature, anchor, candidate)


def anchors_and_candidates(rows: Rows) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Selects the rows of anchors, and those of positives and hard negatives.

    Args:
        rows: One row per text, with `queries` and `members`.

    Returns:
        Rows of the anchors, and rows of the candidates: first the positives in the order of their anchors, then the
        hard negatives.
    """
    has_query = rows["queries"] != NO_QUERY
    anchor = {name: value[has_query & (rows["members"] == ANCHOR)] for name, value in rows.items()}
    is_candidate = has_query & (rows["members"] != ANCHOR)
    # Positives first, so that the positive of anchor i is candidate i.
    order = (rows["members"][is_candidate] != POSITIVE).long().argsort(stable=True)
    return anchor, {name: value[is_candidate][order] for name, value in rows.items()}


def contrast(scores: Tensor, anchor: Rows, candidate: Rows) -> Tensor:
    """Computes InfoNCE from scores that are already divided by the temperature; `info_nce` states the formula.

    Args:
        scores: (anchors, candidates) fp32, at least one anchor.
        anchor: `queries` and `texts` of the anchors.
        candidate: `texts` of the candidates, in the order of `anchors_and_candidates`.

    Returns:
        (2,): the sum over anchors, and the sum over positives, each of which is compared with all anchors.
    """
    scores = scores.masked_fill(is_known_match(anchor, candidate), -torch.inf)
    own = scores.diagonal()
    forward = (scores.logsumexp(dim=1) - own).sum()
    backward = (scores[:, : len(scores)].logsumexp(dim=0) - own).sum()
    return torch.stack([forward, backward])


def is_known_match(anchor: Rows, candidate: Rows) -> Tensor:
    """Marks candidates that match an anchor, except its own positive.

    A candidate matches if its text equals the anchor, or equals a positive of the same query anywhere in the step. For
    labelled texts, all candidates with the same label match.

    Args:
        anchor: (anchors,) `queries` and `texts`.
        candidate: (candidates,) `texts`. The first ones are the positives of the anchors.

    Returns:
        (anchors, candidates) bool; True marks a match.
    """
    texts = candidate["texts"]
    answers = texts[: len(anchor["texts"]), None] == texts[None]
    same_query = anchor["queries"][:, None] == anchor["queries"][None]
    # The product of the 0/1 matrices counts the positives of the query that equal the candidate.
    is_match = (anchor["texts"][:, None] == texts[None]) | (same_query.float() @ answers.float() > 0)
    return is_match.fill_diagonal_(False)


def cosent(rows: Rows, temperature: float) -> Tensor:
    """CoSENT: of any two pairs of texts, the one with the higher score must have the higher cosine.

    log(1 + sum over pairs i, j with score(i) > score(j) of exp((cos(j) - cos(i)) / t)): Su 2022, "CoSENT: a more
    efficient sentence embedding scheme than Sentence-BERT", equation 6 (https://kexue.fm/archives/8847), which is the
    `CoSENTLoss` of sentence-transformers.

    Args:
        rows: Rows whose anchor and positive are the two texts of a pair.
        temperature: Temperature t.

    Returns:
        The value of the step times the number of pairs, because the denominator of the loss is that number.
    """
    first, second = (rows["embeddings"][rows["members"] == member] for member in (ANCHOR, POSITIVE))
    references = rows["scores"][rows["members"] == ANCHOR]
    cosines = (normalize(first, dim=1) * normalize(second, dim=1)).sum(dim=1) / temperature
    is_ordered = references[:, None] > references[None]
    differences = (cosines[None] - cosines[:, None])[is_ordered]
    return torch.cat([differences.new_zeros(1), differences]).logsumexp(dim=0) * len(references)


def candidate_lists(scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Arranges scores as a list of candidates for each anchor: its positive, then its hard negatives.

    Args:
        scores: (rows,) score of each row with the anchor of its item; that of the anchor itself is ignored.
        rows: `members` and `teacher_scores` of the rows, ordered by sequence id.

    Returns:
        (anchors, candidates) scores, scores of the teacher, and bool, False for padding.
    """
    members = rows["members"]
    owners = (members == ANCHOR).cumsum(0) - 1
    is_candidate = members != ANCHOR
    place = owners[is_candidate], members[is_candidate] - POSITIVE
    num_anchors = int((members == ANCHOR).sum())
    shape = (num_anchors, int(members.max()) if len(members) else 0)
    own, taught = (
        scores.new_zeros(shape).index_put(place, each[is_candidate].to(scores.dtype))
        for each in (scores, rows["teacher_scores"])
    )
    is_real = torch.zeros(shape, dtype=torch.bool, device=members.device)
    return own, taught, is_real.index_put(place, is_real.new_ones(()))


def taught_scores(rows: Rows, temperature: float, losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Sums a loss between the scores of each anchor's candidates and those of a teacher.

    Args:
        rows: Rows of the step, with `teacher_scores` (rows,) of candidates. Without them the sum is 0.
        temperature: Divisor of the cosines, which are the scores.
        losses: Function of `framework.nn.score_distillation`.
    """
    if "teacher_scores" not in rows or not len(rows["members"]):
        return rows["embeddings"].sum() * 0.0
    vectors, is_anchor = normalize(rows["embeddings"], dim=1), rows["members"] == ANCHOR
    anchors = vectors[is_anchor].index_select(0, is_anchor.cumsum(0) - 1)
    return losses(*candidate_lists((vectors * anchors).sum(dim=1) / temperature, rows)).sum()


def vector_error_sum(vectors: Tensor, taught: Tensor, has_vector: Tensor | None) -> Tensor:
    """Returns the squared error of vectors, averaged over channels and summed over texts.

    Args:
        vectors: (rows, channels) of the model, projected to the width of the teacher.
        taught: (rows, channels) of the teacher.
        has_vector: (rows,) bool, False for texts without a vector of the teacher; None: all have one.
    """
    errors = (vectors - taught).square().mean(dim=1)
    return (errors if has_vector is None else torch.where(has_vector, errors, 0.0)).sum()


def mean_over_sizes(loss: Callable[[Rows], Tensor], rows: Rows, sizes: Sequence[int]) -> Tensor:
    """Averages a loss over embeddings truncated to each of several sizes.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147, equation 1, with equal weights). The
    losses compute cosines, so they normalize the truncated vectors again.

    Args:
        loss: Function from rows to a tensor.
        rows: Rows of the step.
        sizes: Numbers of leading channels to keep.
    """
    values = [loss({**rows, "embeddings": rows["embeddings"][:, :size]}) for size in sizes]
    return torch.stack(values).mean(dim=0)
