"""Scores of all catalogue items for users, and selection of the best items."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from framework.tasks.recommendation.losses import Scoring
from framework.tasks.recommendation.trial import Question

Score = Callable[[Sequence[Question]], np.ndarray]
"""Function from questions to (questions, items) scores."""

_MOMENTS_AT_ONCE = 512
"""Number of questions whose scores of all items are in memory at the same time."""


def score_items(
    questions: Sequence[Question], vectors: np.ndarray, log_shares: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """Returns (questions, items) scores of all items. Without a history the score is the popularity alone.

    Args:
        questions: Questions whose histories are row indices of `vectors`.
        vectors: (texts, hidden) fp64 of length 1. The vectors of the catalogue come first.
        log_shares: (items,) logarithms of the shares of the likes.
        scoring: Scoring of an item for a user.
    """
    user_vectors = np.zeros((len(questions), vectors.shape[1]))
    for row, question in enumerate(questions):
        last = question.history[-scoring.max_history :]
        weights = scoring.weights(torch.arange(len(last)).flip(0)).double().numpy()
        user_vectors[row] = weights @ vectors[last]
    user_vectors /= np.maximum(np.linalg.norm(user_vectors, axis=1, keepdims=True), 1e-12)
    is_cold = np.array([len(question.history) == 0 for question in questions])
    prior = np.where(is_cold, 1.0, scoring.popularity_prior)
    return user_vectors @ vectors[: len(log_shares)].T / scoring.temperature + prior[:, None] * log_shares


def unseen_scores(questions: Sequence[Question], score: Score) -> Iterator[tuple[Sequence[Question], np.ndarray]]:
    """Yields chunks of questions with (questions, items) scores, -inf for items that the user has seen before."""
    for first in range(0, len(questions), _MOMENTS_AT_ONCE):
        chunk = questions[first : first + _MOMENTS_AT_ONCE]
        scores = np.array(score(chunk), dtype=np.float64)
        for row, question in enumerate(chunk):
            scores[row, question.seen] = -np.inf
        yield chunk, scores


def best_items(scores: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the indices of the best items of one row, best first. Excludes items with -inf. Ties keep their order."""
    best = np.argsort(-scores, kind="stable")[:num_items]
    return best[np.isfinite(scores[best])]
