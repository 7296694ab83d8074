"""Tests of ratios of sums over rows against values computed by hand."""

import numpy as np
import pytest

from framework.metrics.entity_f1 import count_entities, entity_ratios, overall
from framework.metrics.row_ratio import RowRatio
from framework.metrics.span_f1 import answer_ratios


def test_chosen_rows_are_weighted():
    ratio = RowRatio(np.array([1.0, 0.0, 2.0, 5.0]), np.array([2.0, 1.0, 2.0, 9.0]))
    assert ratio.total() == 8 / 14
    weights = np.array([[1.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    assert ratio.values(np.array([0, 2]), weights).tolist() == [3 / 4, 1 / 2, 1.0]


def test_a_zero_denominator_is_undefined_for_chosen_rows():
    ratio = RowRatio(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert np.isnan(ratio.values(np.array([0]), np.ones((1, 1)))).all()
    assert RowRatio(np.zeros(2), np.zeros(2)).total() == 0.0


def test_entities_of_chosen_sentences():
    # Right; a wrong type and a wrong end; nothing; one missed.
    present = [["B-x", "I-x"], ["B-x", "O", "B-y", "I-y"], ["O"], ["B-y"]]
    predicted = [["B-x", "I-x"], ["B-y", "O", "B-y", "O"], ["O"], ["O"]]
    ratios = entity_ratios(present, predicted)
    counts = overall(count_entities(present, predicted, ["x", "y"]).values())
    assert (counts.correct, counts.predicted, counts.present) == (1, 3, 4)
    for name, value in (("precision", 1 / 3), ("recall", 1 / 4), ("f1", 2 / 7)):
        assert ratios[name].total() == value == getattr(counts, name)
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    assert ratios["f1"].values(np.array([0, 3]), weights).tolist() == [2 / 3, 1.0, 0.0]
    assert ratios["precision"].values(np.array([0, 3]), weights[:2]).tolist() == [1.0, 1.0]
    assert ratios["recall"].values(np.array([0, 3]), weights).tolist() == [1 / 2, 1.0, 0.0]


def test_answers_of_chosen_questions():
    # Right; one of two words, F1 2 * 1 / 3; no answer, which is right; an answer where there is none.
    ratios = answer_ratios(["the red", "big house", "", "x"], [["red"], ["house"], [], []])
    assert ratios["exact_match"].total() == 2 / 4
    assert ratios["f1"].total() == pytest.approx((1 + 2 / 3 + 1) / 4, abs=1e-12)
    assert ratios["has_answer_exact_match"].total() == 1 / 2
    assert ratios["no_answer_f1"].total() == 1 / 2
    chosen = np.array([0, 1, 3])
    assert ratios["f1"].values(chosen, np.array([[0.0, 3.0, 1.0]])) == pytest.approx(2 / 4, abs=1e-12)
    assert ratios["has_answer_f1"].values(chosen, np.ones((1, 3))) == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)
    assert np.isnan(ratios["has_answer_f1"].values(np.array([2, 3]), np.ones((1, 2)))).all()
