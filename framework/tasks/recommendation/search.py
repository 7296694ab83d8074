"""Scores of all items of the catalogue for users, and the best of them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from framework.tasks.recommendation.losses import Scoring
from framework.tasks.recommendation.trial import Question

Score = Callable[[Sequence[Question]], np.ndarray]
"""From questions to (questions, items) scores."""

_MOMENTS_AT_ONCE = 512
"""Their scores of all items are in memory together."""


def score_items(
    questions: Sequence[Question], vectors: np.ndarray, log_shares: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """(questions, items) scores of all items; without a history by popularity alone.

    Args:
        questions: Their histories are places in `vectors`.
        vectors: (texts, hidden) fp64 of length 1; first those of the catalogue.
        log_shares: (items,) of the catalogue.
        scoring: Of a user and an item.
    """
    asking = np.zeros((len(questions), vectors.shape[1]))
    for row, question in enumerate(questions):
        last = question.history[-scoring.max_history :]
        weights = scoring.weights(torch.arange(len(last)).flip(0)).double().numpy()
        asking[row] = weights @ vectors[last]
    asking /= np.maximum(np.linalg.norm(asking, axis=1, keepdims=True), 1e-12)
    is_cold = np.array([len(question.history) == 0 for question in questions])
    prior = np.where(is_cold, 1.0, scoring.popularity_prior)
    return asking @ vectors[: len(log_shares)].T / scoring.temperature + prior[:, None] * log_shares


def unseen_scores(questions: Sequence[Question], score: Score) -> Iterator[tuple[Sequence[Question], np.ndarray]]:
    """Some questions at a time with their (questions, items) scores, -inf where the user had to do with the item."""
    for first in range(0, len(questions), _MOMENTS_AT_ONCE):
        chunk = questions[first : first + _MOMENTS_AT_ONCE]
        scores = np.array(score(chunk), dtype=np.float64)
        for row, question in enumerate(chunk):
            scores[row, question.seen] = -np.inf
        yield chunk, scores


def best_items(scores: np.ndarray, num_items: int) -> np.ndarray:
    """Places of the best items of one row that are not -inf, the best first, equal ones in the order given."""
    best = np.argsort(-scores, kind="stable")[:num_items]
    return best[np.isfinite(scores[best])]
