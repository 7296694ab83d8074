"""Error analysis of recommendation: moments at which the next likes of a user have a low rank."""

import numpy as np

from framework.metrics.ranking import ndcg, rank_gains
from framework.tasks.examination import Examination, ExaminedRow, ItemResults
from framework.tasks.recommendation.catalogue import Catalogue
from framework.tasks.recommendation.search import Score, best_items, unseen_scores
from framework.tasks.recommendation.trial import Trial

_NUM_SHOWN = 3
_SHOWN_LETTERS = 40
_CUT = 10


def examine_trial(
    trial: Trial, score: Score, catalogue: Catalogue, results: ItemResults, max_history: int
) -> Examination:
    """Builds one row per question. Its score is nDCG@10.

    Args:
        trial: Questions of the split.
        score: Function from questions to (questions, items) scores.
        catalogue: Ranked items.
        results: Model results for the items of the split. The results for the catalogue come last.
        max_history: Number of last likes that the model reads.
    """
    lengths = results.lengths[len(results.lengths) - len(catalogue.items) :]

    def names(indices: np.ndarray) -> str:
        return "; ".join(" ".join(catalogue.texts[index].split())[:_SHOWN_LETTERS] for index in indices)

    rows = []
    for chunk, scores in unseen_scores(trial.questions, score):
        is_relevant = np.zeros(scores.shape, dtype=bool)
        for row, question in enumerate(chunk):
            is_relevant[row, question.relevant] = True
        values = ndcg(rank_gains(scores, is_relevant), _CUT)
        for question, value, row_scores in zip(chunk, values.tolist(), scores, strict=True):
            rows.append(
                ExaminedRow(
                    length=int(lengths[question.history[-max_history:]].sum()),
                    score=value,
                    expected=names(question.relevant[:_NUM_SHOWN]),
                    predicted=names(best_items(row_scores, _NUM_SHOWN)),
                    text=f"liked before: {names(question.history[-_NUM_SHOWN:])}",
                )
            )
    return Examination(rows, f"nDCG@{_CUT}")
