"""Recommendation loss over all likes of a step, and the scoring that loss and search share."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

Rows = Mapping[str, Tensor]
"""Rows of a step: `embeddings` (rows, hidden) fp32 of length 1, and the targets of
`framework.tasks.recommendation.features`: `members`, `users`, `items`, `earlier` (rows,) int64, `log_shares` (rows,)
fp32."""

NOBODY = -1
"""User id of an item that is only a search candidate."""


@dataclass(frozen=True)
class Scoring:
    """Score of an item for a user: cosine / temperature + popularity_prior * log_share.

    Attributes:
        temperature: Divisor of the cosine.
        popularity_prior: Weight of the logarithm of the item's share of all training likes.
        max_history: Number of last likes that form the vector of a user.
        history_decay: Weight of a like relative to the next later like.
    """

    temperature: float
    popularity_prior: float
    max_history: int
    history_decay: float

    def weights(self, ages: Tensor) -> Tensor:
        """Returns the weights of likes in the user's vector.

        Args:
            ages: Ages of likes: 0 for the last like before the moment, 1 for the one before it, and so on. Likes that
                are not before the moment have negative ages.
        """
        is_used = (ages >= 0) & (ages < self.max_history)
        return torch.where(is_used, self.history_decay ** ages.clamp(min=0).float(), 0.0)


def sampled_softmax(rows: Rows, scoring: Scoring, known: Tensor, num_items: int, corrects_sampling: bool) -> Tensor:
    """Softmax loss: the user's vector at the moment of a like must score it above all other likes of the step.

    -log(exp(s(u, i)) / sum over c of exp(s(u, c))), where s is the score, minus the logarithm of the item's share of
    the likes if sampling is corrected: Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item
    recommendations" (RecSys, section 3, equations 4 and 5). The share is counted in advance, not estimated during
    training (section 3.1). Departure: a known like of the user is never a negative.

    Args:
        rows: Rows of a step. A row with `earlier` above 0 is a target. Its history is that many rows from the first row
            of its segment on.
        scoring: Scoring of an item for a user.
        known: Ascending int64 `user * num_items + item` of all known likes.
        num_items: Number of items in the catalogue.
        corrects_sampling: Apply the correction.

    Returns:
        The sum over the targets, an fp32 scalar.
    """
    rows = {name: value[rows["users"] != NOBODY] for name, value in rows.items()}
    vectors, users, items = rows["embeddings"], rows["users"], rows["items"]
    own = (rows["earlier"] > 0).nonzero()[:, 0]
    if len(own) == 0:
        # logsumexp is undefined over an empty dim.
        return vectors.sum() * 0.0
    index = torch.arange(len(users), device=users.device)
    last_earlier = (index - rows["members"] + rows["earlier"] - 1)[own]
    ages = last_earlier[:, None] - index[None]
    # Rows before the first row of the segment have ages of at least `earlier`.
    weights = scoring.weights(ages) * (ages < rows["earlier"][own, None])
    user_vectors = normalize(weights @ vectors, dim=1)
    bias = (scoring.popularity_prior - float(corrects_sampling)) * rows["log_shares"]
    scores = user_vectors @ vectors.T / scoring.temperature + bias
    is_known = _contains(known, users[own, None] * num_items + items[None])
    is_known.scatter_(1, own[:, None], False)
    scores = scores.masked_fill(is_known, -torch.inf)
    return (scores.logsumexp(dim=1) - scores.gather(1, own[:, None])[:, 0]).sum()


def _contains(ascending: Tensor, values: Tensor) -> Tensor:
    indices = torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)
    return ascending[indices] == values
