"""What a split of recommendation is evaluated by: the moments that are asked, and baselines that know no text.

Every moment at which a user likes something is asked once, from what the user liked strictly before. Relevant is what
the user likes at that moment or later in the split. Popularity and means are of the training alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework.tasks.recommendation.catalogue import Catalogue
from framework.tasks.recommendation.data import Interactions, Likes

POPULARITY, ITEM_MEAN = "popularity", "item_mean"
_MEAN_SUPPORT = 5.0
"""Ratings of the overall mean that each item has beside its own, so that a single high rating does not lead."""


@dataclass(frozen=True, slots=True)
class Question:
    """One moment of one user; places in the catalogue, views of what all moments of the user share.

    Attributes:
        user: Place among all users.
        history: What was liked strictly before, in the order of time.
        seen: What the user had to do with strictly before, liked or not.
        relevant: What is liked at this moment or later in the split.
    """

    user: int
    history: np.ndarray
    seen: np.ndarray
    relevant: np.ndarray


@dataclass(frozen=True)
class Trial:
    """What a split is evaluated by.

    Attributes:
        questions: In the order of users, then time.
        num_cold: Likes of the split by users who had liked nothing strictly before; nothing is asked there.
        num_likes: All likes of the split.
        baselines: (items,) scores by name, of the training alone.
    """

    questions: Sequence[Question]
    num_cold: int
    num_likes: int
    baselines: Mapping[str, np.ndarray]


def build_trial(data: Interactions, likes: Likes, split: int, catalogue: Catalogue) -> Trial:
    """The questions of a split."""
    order = data.users.argsort(kind="stable")
    users, times, places = data.users[order], data.times[order], data.places[order]
    starts = np.searchsorted(users, np.arange(users.max(initial=-1) + 2))
    here = np.flatnonzero(likes.splits == split)
    ends = {int(user): int(place) + 1 for user, place in zip(likes.users[here], here, strict=True)}
    questions = []
    is_asked = (likes.num_earlier[here] > 0) & (np.diff(likes.starts[here] + likes.num_earlier[here], prepend=-1) != 0)
    for place in here[is_asked]:
        user, start = int(likes.users[place]), int(likes.starts[place])
        own = slice(starts[user], starts[user + 1])
        num_seen = int(np.searchsorted(times[own], likes.times[place]))
        questions.append(
            Question(
                user,
                likes.places[start : start + likes.num_earlier[place]],
                places[own][:num_seen],
                likes.places[place : ends[user]],
            )
        )
    num_cold = int((likes.num_earlier[here] == 0).sum())
    return Trial(questions, num_cold, len(here), build_baselines(data, catalogue))


def build_baselines(data: Interactions, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Popularity: likes of each item; and where there are ratings the mean of each item's, all of the training alone.

    Means are drawn to the overall one, by as much as that many ratings of it.
    """
    found = {POPULARITY: catalogue.num_likes.astype(np.float64)}
    ratings, places = data.ratings[data.splits == 0], data.places[data.splits == 0]
    if np.isfinite(ratings).all():
        counts = np.bincount(places, minlength=len(catalogue.items))
        sums = np.bincount(places, weights=ratings, minlength=len(catalogue.items))
        found[ITEM_MEAN] = (sums + _MEAN_SUPPORT * ratings.mean()) / (counts + _MEAN_SUPPORT)
    return found
