"""Evaluation protocol of a split: questions about the next likes of users, and baselines that use no texts.

Every moment at which a user likes an item yields one question, unless the user has no earlier like. Its input is the
user's strictly earlier likes. Relevant items are those that the user likes at that moment or later in the split. The
baselines use popularity and mean ratings of the training split alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework.tasks.recommendation.catalogue import Catalogue
from framework.tasks.recommendation.data import Interactions, Likes

POPULARITY, ITEM_MEAN = "popularity", "item_mean"
_MEAN_SUPPORT = 5.0
"""Number of ratings of the overall mean that are added to each item, so that one high rating does not rank it first."""


@dataclass(frozen=True, slots=True)
class Question:
    """One moment of one user. Arrays hold indices of catalogue items and are views shared by all moments of the user.

    Attributes:
        user: Index of the user.
        history: Items liked strictly before, in time order.
        seen: Items that the user interacted with strictly before, liked or not.
        relevant: Items liked at this moment or later in the split.
    """

    user: int
    history: np.ndarray
    seen: np.ndarray
    relevant: np.ndarray


@dataclass(frozen=True)
class Trial:
    """Questions and baselines of a split.

    Attributes:
        questions: Questions, sorted by user, then time.
        num_cold: Number of likes of users without a strictly earlier like. They yield no question.
        num_likes: Number of all likes of the split.
        baselines: (items,) scores by name, from the training split alone.
    """

    questions: Sequence[Question]
    num_cold: int
    num_likes: int
    baselines: Mapping[str, np.ndarray]


def build_trial(data: Interactions, likes: Likes, split: int, catalogue: Catalogue) -> Trial:
    """Builds the questions and baselines of a split.

    Args:
        data: All interactions.
        likes: Likes of `data`.
        split: Index in SPLITS.
        catalogue: Catalogue of items.
    """
    order = data.users.argsort(kind="stable")
    users, times, item_indices = data.users[order], data.times[order], data.item_indices[order]
    starts = np.searchsorted(users, np.arange(users.max(initial=-1) + 2))
    in_split = np.flatnonzero(likes.splits == split)
    ends = {int(user): int(like) + 1 for user, like in zip(likes.users[in_split], in_split, strict=True)}
    questions = []
    first_earlier, num_earlier = likes.starts[in_split], likes.num_earlier[in_split]
    for like in in_split[(num_earlier > 0) & (np.diff(first_earlier + num_earlier, prepend=-1) != 0)]:
        user, start = int(likes.users[like]), int(likes.starts[like])
        own = slice(starts[user], starts[user + 1])
        num_seen = int(np.searchsorted(times[own], likes.times[like]))
        questions.append(
            Question(
                user,
                likes.item_indices[start : start + likes.num_earlier[like]],
                item_indices[own][:num_seen],
                likes.item_indices[like : ends[user]],
            )
        )
    num_cold = int((num_earlier == 0).sum())
    return Trial(questions, num_cold, len(in_split), build_baselines(data, catalogue))


def build_baselines(data: Interactions, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Computes baseline scores from the training split: likes per item and, if there are ratings, mean rating per item.

    Each mean is shrunk towards the overall mean, as if the item had `_MEAN_SUPPORT` more ratings of that value.
    """
    baselines = {POPULARITY: catalogue.num_likes.astype(np.float64)}
    ratings, item_indices = data.ratings[data.splits == 0], data.item_indices[data.splits == 0]
    if np.isfinite(ratings).all():
        counts = np.bincount(item_indices, minlength=len(catalogue.items))
        sums = np.bincount(item_indices, weights=ratings, minlength=len(catalogue.items))
        baselines[ITEM_MEAN] = (sums + _MEAN_SUPPORT * ratings.mean()) / (counts + _MEAN_SUPPORT)
    return baselines
