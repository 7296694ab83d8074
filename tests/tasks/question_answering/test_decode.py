"""Spans of windows compared with all pairs of tokens, and answers from windows by hand."""

import math

import numpy as np
import pytest

from framework.tasks.question_answering.data import Question
from framework.tasks.question_answering.decode import WindowSpans, assemble_answers, best_spans
from framework.tasks.question_answering.features import Passage, Window


def all_spans(start: np.ndarray, end: np.ndarray, longest: int) -> list[tuple[float, int, int]]:
    spans = [
        (float(start[1 + first] + end[1 + last]), first, last)
        for first in range(len(start) - 1)
        for last in range(first, min(first + longest, len(end) - 1))
    ]
    return sorted(spans, key=lambda span: (-span[0], span[1], span[2]))


@pytest.mark.parametrize(
    ("num_tokens", "longest", "n_best"), [(30, 5, 20), (30, 50, 7), (4, 3, 20), (1, 9, 3), (6, 1, 6)]
)
def test_spans_are_the_best_of_all_pairs(num_tokens, longest, n_best):
    random = np.random.default_rng(num_tokens)
    start, end = (random.normal(size=1 + num_tokens).astype(np.float32) for _ in range(2))
    spans = best_spans(start, end, longest, n_best)
    expected = all_spans(start, end, longest)[:n_best]
    assert list(zip(spans.firsts.tolist(), spans.lasts.tolist(), strict=True)) == [span[1:] for span in expected]
    assert spans.scores.tolist() == pytest.approx([span[0] for span in expected])
    assert spans.null_score == pytest.approx(start[0] + end[0])


def test_a_window_without_tokens_has_no_span():
    spans = best_spans(np.float32([1]), np.float32([2]), 5, 5)
    assert (len(spans.firsts), len(spans.scores), spans.null_score) == (0, 0, 3.0)


CONTEXT = "Cafe\u0301s in  Bern"
PASSAGE = Passage(np.zeros(3, np.int32), np.array([0, 6, 9]), np.array([4, 9, 15]))
"""Offsets of byte-level tokens after a normalizer that drops accents: `Cafe`, ` in`, `  Bern`."""


def windows(*firsts: int, row: int = 0, context: str = CONTEXT) -> list[Window]:
    return [Window(row, Question("p", "q", context, ()), PASSAGE, first) for first in firsts]


def spans(null_score: float, *candidates: tuple[int, int, float]) -> WindowSpans:
    firsts, lasts, scores = zip(*candidates, strict=True) if candidates else ((), (), ())
    return WindowSpans(np.array(firsts, int), np.array(lasts, int), np.array(scores, np.float32), null_score)


def test_an_answer_is_the_best_span_of_all_windows():
    # Two spans are in both windows; the better score of each counts once.
    decoded = [spans(9.0, (2, 2, 3.0), (0, 0, 2.0), (1, 2, 1.0)), spans(1.0, (1, 1, 4.0), (0, 1, -5.0))]
    (answer,) = assemble_answers(windows(0, 1), decoded, n_best=3, no_answer_threshold=None)
    total = math.exp(4) + math.exp(2) + math.exp(1)
    expected = [
        {"answer": "Bern", "start": 11, "end": 15, "probability": math.exp(4) / total},
        # The accent after the last token belongs to it.
        {"answer": "Cafe\u0301", "start": 0, "end": 5, "probability": math.exp(2) / total},
        # White space before the first token does not.
        {"answer": "in  Bern", "start": 7, "end": 15, "probability": math.exp(1) / total},
    ]
    for candidate, each in zip(answer["n_best"], expected, strict=True):
        assert candidate == each | {"probability": pytest.approx(each["probability"])}
    assert {name: answer[name] for name in expected[0]} == answer["n_best"][0]


def test_only_the_best_candidates_are_returned():
    (answer,) = assemble_answers(windows(0), [spans(0.0, (2, 2, 3.0), (1, 1, 2.0), (0, 0, 2.0))], 1, None)
    assert [candidate["probability"] for candidate in answer["n_best"]] == [1.0]


@pytest.mark.parametrize(
    ("threshold", "answer"), [(None, "Bern"), (0.0, ""), (0.9, ""), (1.1, "Bern"), (-5.0, ""), (2.0, "Bern")]
)
def test_no_answer_wins_by_more_than_the_threshold(threshold, answer):
    # The score of no answer is its lowest over the windows: 4, against 3 of the best span.
    decoded = [spans(4.0, (2, 2, 1.0)), spans(9.0, (1, 1, 3.0))]
    (actual,) = assemble_answers(windows(0, 1), decoded, 5, threshold)
    assert actual["answer"] == answer
    assert (actual["start"], actual["end"]) == ((11, 15) if answer else (None, None))
    if threshold is None:
        assert [candidate["answer"] for candidate in actual["n_best"]] == ["Bern"]
        return
    assert [candidate["answer"] for candidate in actual["n_best"]] == ["", "Bern"]
    assert actual["probability"] == pytest.approx(1 / (1 + math.exp(-1 if answer == "" else 1)))


def test_each_question_has_its_own_windows():
    decoded = [spans(0.0, (2, 2, 1.0)), spans(0.0), spans(0.0, (0, 0, 1.0)), spans(0.0, (0, 0, 2.0))]
    of_rows = [*windows(0), *windows(0, row=1, context=" "), *windows(0, 2, row=2)]
    answers = assemble_answers(of_rows, decoded, 5, None)
    # The context of the second has no token.
    assert [each["answer"] for each in answers] == ["Bern", "", "Bern"]
    assert answers[1] == {"answer": "", "start": None, "end": None, "probability": 1.0, "n_best": answers[1]["n_best"]}
