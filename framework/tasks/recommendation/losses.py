"""The loss of recommendation, over all likes of a step, and the vector of a user that loss and search agree on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

Rows = Mapping[str, Tensor]
"""`embeddings` (rows, hidden) fp32 of length 1 and, of `framework.tasks.recommendation.features`, `members`, `users`,
`items`, `earlier` (rows,) int64 and `log_shares` (rows,) fp32."""

NOBODY = -1
"""The user of an item that is only searched."""


@dataclass(frozen=True)
class Scoring:
    """How a user and an item are scored: cosine / temperature + popularity_prior * log_share.

    Attributes:
        temperature: What the cosine is divided by.
        popularity_prior: Weight of the logarithm of the item's share of all likes of the training.
        max_history: How many of the last likes make the vector of a user.
        history_decay: Weight of a like relative to the one after it.
    """

    temperature: float
    popularity_prior: float
    max_history: int
    history_decay: float

    def weights(self, ages: Tensor) -> Tensor:
        """Weights in the user's vector of likes by age: 0 of the last one before the moment, 1 of the one before it.

        Below 0 are those that are not before the moment.
        """
        is_used = (ages >= 0) & (ages < self.max_history)
        return torch.where(is_used, self.history_decay ** ages.clamp(min=0).float(), 0.0)


def sampled_softmax(rows: Rows, scoring: Scoring, known: Tensor, num_items: int, corrects_sampling: bool) -> Tensor:
    """Each like must be found, by the user's vector at that moment, among all likes of the step.

    -log(exp(s(u, i)) / sum over c of exp(s(u, c))), where s is the score, with the logarithm of the item's share of the
    likes taken off where sampling is corrected: Yi et al. 2019, "Sampling-bias-corrected neural modeling for large
    corpus item recommendations" (RecSys, section 3, equations 4 and 5). The share is counted, not estimated while
    training streams by (section 3.1). Departure: what the user is known to like is no negative.

    Args:
        rows: Of a step; a row with `earlier` above 0 is a like that must be found, by that many rows from the first one
            of its stretch on.
        scoring: Of a user and an item.
        known: Ascending int64 `user * num_items + item` of all likes that are known.
        num_items: Of the catalogue.
        corrects_sampling: Whether the correction is applied.

    Returns:
        The sum over the likes, a fp32 scalar.
    """
    rows = {name: value[rows["users"] != NOBODY] for name, value in rows.items()}
    vectors, users, items = rows["embeddings"], rows["users"], rows["items"]
    own = (rows["earlier"] > 0).nonzero()[:, 0]
    if len(own) == 0:
        # Of an empty dim there is no logsumexp.
        return vectors.sum() * 0.0
    place = torch.arange(len(users), device=users.device)
    last_earlier = (place - rows["members"] + rows["earlier"] - 1)[own]
    ages = last_earlier[:, None] - place[None]
    # Rows from the first one of the stretch on have ages below `earlier`.
    weights = scoring.weights(ages) * (ages < rows["earlier"][own, None])
    asking = normalize(weights @ vectors, dim=1)
    bias = (scoring.popularity_prior - float(corrects_sampling)) * rows["log_shares"]
    scores = asking @ vectors.T / scoring.temperature + bias
    is_known = _contains(known, users[own, None] * num_items + items[None])
    is_known.scatter_(1, own[:, None], False)
    scores = scores.masked_fill(is_known, -torch.inf)
    return (scores.logsumexp(dim=1) - scores.gather(1, own[:, None])[:, 0]).sum()


def _contains(ascending: Tensor, values: Tensor) -> Tensor:
    places = torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)
    return ascending[places] == values
