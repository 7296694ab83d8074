"""Error analysis of question answering: each question with the part of its context around the true answer."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from framework.metrics.span_f1 import score_answers
from framework.tasks.examination import Examination, ExaminedRow, ItemResults, Outcomes
from framework.tasks.question_answering.features import Window

NO_ANSWER = "(no answer)"
_CHARACTERS_AROUND = 120


def examine_answers(
    windows: Sequence[Window], results: ItemResults, predictions: Sequence[Mapping[str, Any]], answer_unit: str
) -> Examination:
    """Builds one row per question. Its score is its F1. A prediction counts as correct if it matches exactly.

    Args:
        windows: Records of the split.
        results: Model results for the items of the split.
        predictions: Predictions, one per question.
        answer_unit: Unit of the scores, "words" or "characters".
    """
    lengths = np.bincount([window.row for window in windows], results.lengths)
    rows, is_correct = [], []
    for row, (prediction, (_, group)) in enumerate(
        zip(predictions, groupby(windows, key=lambda window: window.row), strict=True)
    ):
        question = next(group).question
        truths = [answer.text for answer in question.answers]
        scores = score_answers([prediction["answer"]], [truths], answer_unit)
        is_correct.append(scores["exact_match"] == 1)
        offsets = [answer.start for answer in question.answers if answer.start is not None]
        excerpt_offset = offsets[0] if offsets else prediction["start"] or 0
        rows.append(
            ExaminedRow(
                length=int(lengths[row]),
                score=scores["f1"],
                confidence=prediction["probability"],
                expected=" / ".join(dict.fromkeys(truths)) or NO_ANSWER,
                predicted=prediction["answer"] or NO_ANSWER,
                text=f"{question.question}\n{_excerpt(question.context, excerpt_offset)}",
                location=question.location,
            )
        )
    probabilities = np.array([row.confidence for row in rows], dtype=np.float64)
    return Examination(rows, "F1", outcomes=Outcomes("answers", probabilities, np.array(is_correct, dtype=bool)))


def _excerpt(context: str, offset: int) -> str:
    """Returns the part of a context around an offset."""
    start, stop = max(0, offset - _CHARACTERS_AROUND), offset + 2 * _CHARACTERS_AROUND
    return f"{'… ' if start else ''}{context[start:stop].strip()}{' …' if stop < len(context) else ''}"
