"""Whole-split metrics of recommendation for the model and the baselines, over the whole catalogue.

Each moment ranks all items except those that the user interacted with before (`framework.tasks.recommendation.trial`).
A metric is the mean over users of the mean over their moments, so all users have the same weight. Its error is the
standard error of that mean over users.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framework.metrics.ranking import ndcg, rank_gains, recall
from framework.tasks.recommendation.search import Score, unseen_scores
from framework.tasks.recommendation.trial import Trial

CUTS = (5, 10, 20)
MODEL = "model"


def metrics_by_user(trial: Trial, score: Score) -> dict[str, np.ndarray]:
    """Returns each metric as (users,): the mean over the moments of each user with questions.

    Args:
        trial: Questions of the split.
        score: Function from questions to (questions, items) scores.
    """
    by_metric: dict[str, list[np.ndarray]] = {}
    for chunk, scores in unseen_scores(trial.questions, score):
        is_relevant = np.zeros(scores.shape, dtype=bool)
        for row, question in enumerate(chunk):
            is_relevant[row, question.relevant] = True
        ranked = rank_gains(scores, is_relevant)
        for name, metric in (("recall", recall), ("ndcg", ndcg)):
            for k in CUTS:
                by_metric.setdefault(f"{name}_at_{k}", []).append(metric(ranked, k))
    _, users = np.unique([question.user for question in trial.questions], return_inverse=True)
    sizes = np.bincount(users)
    return {name: np.bincount(users, weights=np.concatenate(values)) / sizes for name, values in by_metric.items()}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean over users and its standard error, which is NaN for a single user."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)


@dataclass(frozen=True)
class Comparison:
    """Comparison of the model with the baselines on one split.

    Attributes:
        by_ranker: (users,) values of each metric per ranker, with the model first.
    """

    by_ranker: Mapping[str, Mapping[str, np.ndarray]]

    def values(self) -> dict[str, float]:
        """Returns metrics by name: `NAME` and `NAME_error` of the model, `BASELINE_NAME` of the baselines.

        `ndcg_at_10_over_BASELINE` is the mean of the differences per user, negative if the model is worse.
        """
        result: dict[str, float] = {}
        for ranker, metrics in self.by_ranker.items():
            prefix = "" if ranker == MODEL else f"{ranker}_"
            for name, values in metrics.items():
                if ranker == MODEL or name.endswith("_at_10"):
                    result[f"{prefix}{name}"], error = mean_and_error(values)
                    if name.endswith("_at_10"):
                        result[f"{prefix}{name}_error"] = error
            if ranker != MODEL:
                difference = self.by_ranker[MODEL]["ndcg_at_10"] - metrics["ndcg_at_10"]
                over = f"ndcg_at_10_over_{ranker}"
                result[over], result[f"{over}_error"] = mean_and_error(difference)
        return result

    def table(self) -> list[dict[str, str | float]]:
        """Builds one row per metric and ranker, with the lead of the model over the ranker and the error of that."""
        rows: list[dict[str, str | float]] = []
        for name, own in self.by_ranker[MODEL].items():
            for ranker, metrics in self.by_ranker.items():
                value, error = mean_and_error(metrics[name])
                more, more_error = mean_and_error(own - metrics[name])
                row: dict[str, str | float] = {"ranking": f"{ranker}, {name}".replace("_", " "), "value": value}
                row |= {"error": error, "model has more": more, "error of that": more_error}
                rows.append(row)
        return rows
