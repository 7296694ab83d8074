"""Losses of ranked lists. Each returns one value per list: (lists,) fp32, 0 for a list without candidates.

A list is one row of the arguments, padded at its end: (lists, candidates). A list never depends on another one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from framework.nn.score_distillation import margin_losses, score_divergences

_LAMBDA_MU = 10.0
"""Weight of NDCG-Loss2 in NDCG-Loss2++, the value of sentence-transformers."""


@dataclass(frozen=True)
class ScoredLists:
    """Candidates of several queries.

    Attributes:
        scores: (lists, candidates) scores of the model, at least fp32; padding has any finite value.
        relevance: (lists, candidates) fp32, at least 0; 0 for padding.
        teacher_scores: (lists, candidates) fp32, 0 for padding.
        is_real: (lists, candidates) bool, False for padding.
    """

    scores: Tensor
    relevance: Tensor
    teacher_scores: Tensor
    is_real: Tensor

    def by(self, order: Tensor) -> "ScoredLists":
        """Returns the lists with their candidates in another order: (lists, candidates) int64 indices."""
        columns = (self.scores, self.relevance, self.teacher_scores, self.is_real)
        return ScoredLists(*(values.gather(1, order) for values in columns))

    def by_score(self) -> "ScoredLists":
        """Returns the candidates in falling order of their scores, padding last; equal ones keep their order."""
        return self.by(
            self.scores.detach().masked_fill(~self.is_real, -torch.inf).argsort(dim=1, descending=True, stable=True)
        )

    def by_relevance(self) -> "ScoredLists":
        """Returns the candidates in falling order of their relevance, padding last; equal ones keep their order."""
        return self.by(self.relevance.masked_fill(~self.is_real, -1.0).argsort(dim=1, descending=True, stable=True))


def pointwise_losses(lists: ScoredLists, positive_weight: float = 1.0) -> Tensor:
    """Sums the binary cross entropy of the candidates.

    -(w y log s(x) + (1 - y) log(1 - s(x))) with the relevance y in [0, 1] and the sigmoid s of the score x.

    Args:
        lists: Lists.
        positive_weight: Weight w of relevance.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(
        lists.scores,
        lists.relevance.to(lists.scores.dtype),
        reduction="none",
        pos_weight=lists.scores.new_full((), positive_weight),
    )
    return torch.where(lists.is_real, losses, 0.0).sum(dim=1)


def pairwise_losses(lists: ScoredLists) -> Tensor:
    """Sums log(1 + exp(s_j - s_i)) over the pairs in which candidate i is more relevant than j.

    RankNet: Burges et al. 2005, "Learning to rank using gradient descent", section 3, with target probability 1.
    `RankNetLoss` of sentence-transformers has the logarithm to base 2.
    """
    return _pair_sum(lists, 1.0)


def lambda_losses(lists: ScoredLists) -> Tensor:
    """Sums LambdaLoss with the weights of NDCG-Loss2++ over the pairs in which candidate i is more relevant than j.

    w_ij log2(1 + exp(s_j - s_i)) with w_ij = (10 d_ij + |1 / D_i - 1 / D_j|) |G_i - G_j|, where i and j are ranks by
    the present scores, D_i = log2(1 + i), d_ij = |1 / D_|i-j| - 1 / D_(|i-j|+1)|, and the gain G_i is 2^relevance - 1
    divided by the DCG of the best order: Wang et al. 2018, "The LambdaLoss Framework for Ranking Metric Optimization"
    (CIKM), NDCG-Loss2++; `LambdaLoss` of sentence-transformers with its defaults. The weights have no gradient.
    """
    ranked = lists.by_score()
    size = ranked.scores.shape[1]
    ranks = torch.arange(1, size + 1, device=ranked.scores.device)
    discounts = torch.log2(1.0 + ranks)
    gains = torch.exp2(ranked.relevance) - 1.0
    best = (gains.sort(dim=1, descending=True).values / discounts).sum(dim=1, keepdim=True)
    gains = gains / torch.where(best > 0, best, 1.0)
    distances = (ranks[:, None] - ranks[None]).abs()
    # The diagonal compares no pair; a distance of 1 keeps it finite.
    distances = torch.where(distances == 0, 1, distances)
    deltas = (1.0 / torch.log2(1.0 + distances) - 1.0 / torch.log2(2.0 + distances)).abs()
    inverse = 1.0 / discounts
    by_rank = _LAMBDA_MU * deltas + (inverse[:, None] - inverse[None]).abs()
    weights = by_rank * (gains[:, :, None] - gains[:, None, :]).abs()
    return _pair_sum(ranked, weights / math.log(2.0))


def _pair_sum(lists: ScoredLists, weights: Tensor | float) -> Tensor:
    differences = lists.scores[:, :, None] - lists.scores[:, None, :]
    is_ordered = lists.relevance[:, :, None] > lists.relevance[:, None, :]
    is_pair = is_ordered & lists.is_real[:, :, None] & lists.is_real[:, None, :]
    losses = weights * nn.functional.softplus(-differences)
    return torch.where(is_pair, losses, 0.0).sum(dim=(1, 2))


def listwise_losses(lists: ScoredLists) -> Tensor:
    """Returns the cross entropy between the shares of relevance and the softmax of the scores.

    -sum over i of y_i / (sum of y) log softmax(s)_i: Bruch et al. 2019, "An Analysis of the Softmax Cross Entropy Loss
    for Learning-to-Rank with Binary Relevance" (ICTIR), here also with graded relevance.
    """
    lowest = torch.finfo(lists.scores.dtype).min
    log_shares = lists.scores.masked_fill(~lists.is_real, lowest).log_softmax(dim=1)
    total = lists.relevance.sum(dim=1, keepdim=True)
    shares = lists.relevance / torch.where(total > 0, total, 1.0)
    return -torch.where(shares > 0, shares * log_shares, 0.0).sum(dim=1)


def rank_errors(lists: ScoredLists) -> Tensor:
    """Sums the discounted squared errors of the approximate ranks of the candidates (ADR-MSE).

    (r_i - a_i)^2 / log2(1 + r_i), where r_i is the rank of candidate i by the teacher and a_i = 1 + the sum over others
    of sigmoid(s_j - s_i) its approximate rank: Schlatt et al. 2025, "Rank-DistiLLM" (arXiv:2405.07920).
    Candidates with equal teacher scores share the mean of their ranks, as in `ADRMSELoss` of sentence-transformers.
    """
    scores, teacher, is_real = lists.scores, lists.teacher_scores, lists.is_real
    is_above = torch.sigmoid(scores[:, None, :] - scores[:, :, None])
    is_other = is_real[:, None, :] & ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    approximate = 1.0 + torch.where(is_other, is_above, 0.0).sum(dim=2)
    is_better = (teacher[:, None, :] > teacher[:, :, None]) & is_real[:, None, :]
    is_equal = (teacher[:, None, :] == teacher[:, :, None]) & is_real[:, None, :]
    ranks = torch.where(is_real, is_better.sum(dim=2) + (is_equal.sum(dim=2) + 1.0) / 2.0, 1.0)
    errors = (ranks - approximate).square() / torch.log2(1.0 + ranks)
    return torch.where(is_real, errors, 0.0).sum(dim=1)


def margin_errors(lists: ScoredLists) -> Tensor:
    """Returns the MarginMSE between the most relevant candidate and the others, see `margin_losses`."""
    best = lists.by_relevance()
    return margin_losses(best.scores, best.teacher_scores, best.is_real)


def divergences(lists: ScoredLists, temperature: float = 1.0) -> Tensor:
    """Returns the divergence of the model's distribution from that of the teacher, see `score_divergences`."""
    return score_divergences(lists.scores, lists.teacher_scores, lists.is_real, temperature)
