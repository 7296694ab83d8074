"""Losses of reranking by the name that `task.loss` selects, with the numbers by which their sums are divided."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from framework.tasks.reranking import losses
from framework.tasks.reranking.candidates import CandidateList
from framework.tasks.reranking.losses import ScoredLists


@dataclass(frozen=True)
class Objective:
    """A loss of lists.

    Attributes:
        losses: Function from lists to their losses, (lists,).
        count: Function that returns the number of parts of a list, such as its pairs. The loss of a step is the sum
            over its lists divided by that of the counts.
        reads_teacher: True if the loss follows the scores of a teacher instead of relevance.
        needs_shares: True if relevance must be in [0, 1].
    """

    losses: Callable[[ScoredLists], Tensor]
    count: Callable[[CandidateList], float]
    reads_teacher: bool = False
    needs_shares: bool = False


def _documents(each: CandidateList) -> float:
    return float(len(each.documents))


def ordered_pairs(each: CandidateList) -> float:
    """Returns the number of pairs of candidates of which one is more relevant than the other."""
    relevance = each.relevance or ()
    equal = sum(relevance.count(value) ** 2 for value in set(relevance))
    return (len(relevance) ** 2 - equal) / 2


def _one(each: CandidateList) -> float:  # noqa: ARG001  a list is one part
    return 1.0


def build_objectives(positive_weight: float = 1.0, temperature: float = 1.0) -> dict[str, Objective]:
    """Returns all losses by name.

    Args:
        positive_weight: Weight of relevance in "pointwise".
        temperature: Temperature of "kl".
    """
    pointwise = partial(losses.pointwise_losses, positive_weight=positive_weight)
    divergences = partial(losses.divergences, temperature=temperature)
    return {
        "pointwise": Objective(pointwise, _documents, needs_shares=True),
        "pairwise": Objective(losses.pairwise_losses, ordered_pairs),
        "listwise": Objective(losses.listwise_losses, _one),
        "lambda": Objective(losses.lambda_losses, ordered_pairs),
        "adr_mse": Objective(losses.rank_errors, _documents, reads_teacher=True),
        "margin_mse": Objective(losses.margin_errors, _one, reads_teacher=True),
        "kl": Objective(divergences, _one, reads_teacher=True),
    }
