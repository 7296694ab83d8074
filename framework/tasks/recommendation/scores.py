"""Whole-split metrics of recommendation: the model beside the baselines, over the whole catalogue.

All items are ranked, but for those that the user had to do with before the moment (`framework.tasks.recommendation.
trial`). A metric is the mean over users of the mean over their moments, so that no user weighs more than another; its
error is the standard error of that mean over users.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framework.metrics.ranking import ndcg, ranked_relevance, recall
from framework.tasks.recommendation.search import Score, unseen_scores
from framework.tasks.recommendation.trial import Trial

CUTS = (5, 10, 20)
MODEL = "model"


def metrics_by_user(trial: Trial, score: Score) -> dict[str, np.ndarray]:
    """Each metric (users,): the mean over the moments of each user who is asked.

    Args:
        trial: The questions.
        score: From questions to (questions, items) scores.
    """
    found: dict[str, list[np.ndarray]] = {}
    for chunk, scores in unseen_scores(trial.questions, score):
        is_relevant = np.zeros(scores.shape, dtype=bool)
        for row, question in enumerate(chunk):
            is_relevant[row, question.relevant] = True
        ranked = ranked_relevance(scores, is_relevant)
        for name, metric in (("recall", recall), ("ndcg", ndcg)):
            for k in CUTS:
                found.setdefault(f"{name}_at_{k}", []).append(metric(ranked, k))
    _, users = np.unique([question.user for question in trial.questions], return_inverse=True)
    sizes = np.bincount(users)
    return {name: np.bincount(users, weights=np.concatenate(values)) / sizes for name, values in found.items()}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over users and its standard error; NaN of a single user."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)


@dataclass(frozen=True)
class Comparison:
    """The model beside the baselines on one split.

    Attributes:
        by_ranker: Values (users,) of each metric, by ranker, the model first.
    """

    by_ranker: Mapping[str, Mapping[str, np.ndarray]]

    def values(self) -> dict[str, float]:
        """Metrics by name: the model's plain, `NAME_error`, those of baselines with their name before.

        `ndcg_at_10_over_BASELINE` is the mean of the differences by user, below 0 where the model loses.
        """
        found: dict[str, float] = {}
        for ranker, metrics in self.by_ranker.items():
            before = "" if ranker == MODEL else f"{ranker}_"
            for name, values in metrics.items():
                if ranker == MODEL or name.endswith("_at_10"):
                    found[f"{before}{name}"], error = mean_and_error(values)
                    if name.endswith("_at_10"):
                        found[f"{before}{name}_error"] = error
            if ranker != MODEL:
                difference = self.by_ranker[MODEL]["ndcg_at_10"] - metrics["ndcg_at_10"]
                over = f"ndcg_at_10_over_{ranker}"
                found[over], found[f"{over}_error"] = mean_and_error(difference)
        return found

    def table(self) -> list[dict[str, str | float]]:
        """A row for each metric and ranker; what the model has more than a baseline, with its own error."""
        rows: list[dict[str, str | float]] = []
        for name, own in self.by_ranker[MODEL].items():
            for ranker, metrics in self.by_ranker.items():
                value, error = mean_and_error(metrics[name])
                more, more_error = mean_and_error(own - metrics[name])
                row: dict[str, str | float] = {"ranking": f"{ranker}, {name}".replace("_", " "), "value": value}
                row |= {"error": error, "model has more": more, "error of that": more_error}
                rows.append(row)
        return rows
