"""Errors of question answering: each question with the part of its context that holds the true answer."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from framework.metrics.span_f1 import score_answers
from framework.tasks.examination import Examination, ExaminedRow, FoundItems, Outcomes
from framework.tasks.question_answering.features import Window

NO_ANSWER = "(no answer)"
_CHARACTERS_AROUND = 120


def examine_answers(
    windows: Sequence[Window], found: FoundItems, predictions: Sequence[Mapping[str, Any]], answer_unit: str
) -> Examination:
    """A row for each question, whose score is its F1; probabilities come true where the answer matches exactly.

    Args:
        windows: Records of the split.
        found: For its items.
        predictions: One for each question.
        answer_unit: What scores count.
    """
    lengths = np.bincount([window.row for window in windows], found.lengths)
    rows, came_true = [], []
    for row, (prediction, (_, group)) in enumerate(
        zip(predictions, groupby(windows, key=lambda window: window.row), strict=True)
    ):
        question = next(group).question
        truths = [answer.text for answer in question.answers]
        scores = score_answers([prediction["answer"]], [truths], answer_unit)
        came_true.append(scores["exact_match"] == 1)
        places = [answer.start for answer in question.answers if answer.start is not None]
        shown_from = places[0] if places else prediction["start"] or 0
        rows.append(
            ExaminedRow(
                length=int(lengths[row]),
                score=scores["f1"],
                confidence=prediction["probability"],
                expected=" / ".join(dict.fromkeys(truths)) or NO_ANSWER,
                predicted=prediction["answer"] or NO_ANSWER,
                text=f"{question.question}\n{_around(question.context, shown_from)}",
                place=question.place,
            )
        )
    probabilities = np.array([row.confidence for row in rows], dtype=np.float64)
    return Examination(rows, "F1", outcomes=Outcomes("answers", probabilities, np.array(came_true, dtype=bool)))


def _around(context: str, place: int) -> str:
    """The part of a context around a character."""
    start, stop = max(0, place - _CHARACTERS_AROUND), place + 2 * _CHARACTERS_AROUND
    return f"{'… ' if start else ''}{context[start:stop].strip()}{' …' if stop < len(context) else ''}"
