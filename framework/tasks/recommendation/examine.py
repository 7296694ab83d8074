"""Errors of recommendation: moments at which what a user likes next is ranked low."""

import numpy as np

from framework.metrics.ranking import ndcg, ranked_relevance
from framework.tasks.examination import Examination, ExaminedRow, FoundItems
from framework.tasks.recommendation.catalogue import Catalogue
from framework.tasks.recommendation.search import Score, best_items, unseen_scores
from framework.tasks.recommendation.trial import Trial

_NUM_SHOWN = 3
_SHOWN_LETTERS = 40
_CUT = 10


def examine_trial(trial: Trial, score: Score, catalogue: Catalogue, found: FoundItems, max_history: int) -> Examination:
    """A row for each moment that is asked; its score is nDCG@10.

    Args:
        trial: The questions.
        score: From questions to (questions, items) scores.
        catalogue: What is ranked.
        found: For the items of the split, those of the catalogue last.
        max_history: So many of the last likes are read.
    """
    lengths = found.lengths[len(found.lengths) - len(catalogue.items) :]

    def names(places: np.ndarray) -> str:
        return "; ".join(" ".join(catalogue.texts[place].split())[:_SHOWN_LETTERS] for place in places)

    rows = []
    for chunk, scores in unseen_scores(trial.questions, score):
        is_relevant = np.zeros(scores.shape, dtype=bool)
        for row, question in enumerate(chunk):
            is_relevant[row, question.relevant] = True
        values = ndcg(ranked_relevance(scores, is_relevant), _CUT)
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
