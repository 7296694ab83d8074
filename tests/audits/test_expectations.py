"""Definitions of failure against CheckList's (checklist.expect), worked out by hand for each case."""

import pytest

from framework.audits.expectations import Expectation, judge_case, with_neutral


def of(negative: float, neutral: float, positive: float) -> dict[str, float]:
    return {"0": negative, "1": neutral, "2": positive}


POSITIVE, NEUTRAL, NEGATIVE = of(0.1, 0.1, 0.8), of(0.2, 0.6, 0.2), of(0.7, 0.2, 0.1)
LABEL = Expectation("label", ("2",))
NOT_NEGATIVE = Expectation("label", ("1", "2"))
SAME = Expectation("same", tolerance=0.1)
UP = Expectation("not_lower", tolerance=0.1, ignored="1")
DOWN = Expectation("not_higher", tolerance=0.1, ignored="1")
MARGIN = Expectation("not_lower", tolerance=0.1, label="2", against="0")

CASES = [
    # MFT: Expect.eq, all texts of a case.
    (LABEL, [POSITIVE], False),
    (LABEL, [NEUTRAL], True),
    (LABEL, [POSITIVE, NEGATIVE], True),
    (NOT_NEGATIVE, [NEUTRAL], False),
    (NOT_NEGATIVE, [NEGATIVE], True),
    # INV: Expect.inv(0.1) compares the probability of the first label only if the label changes.
    (SAME, [POSITIVE, of(0.4, 0.1, 0.5)], False),
    (SAME, [of(0.0, 0.46, 0.54), of(0.0, 0.52, 0.48)], False),
    (SAME, [of(0.0, 0.46, 0.54), of(0.0, 0.6, 0.4)], True),
    (SAME, [POSITIVE, POSITIVE, NEGATIVE], True),
    # DIR: Expect.monotonic with the label of the first text, not for neutral ones.
    (UP, [POSITIVE, of(0.2, 0.09, 0.71)], False),
    (UP, [POSITIVE, of(0.2, 0.11, 0.69)], True),
    (UP, [POSITIVE, of(0.0, 0.0, 1.0)], False),
    (UP, [NEUTRAL, POSITIVE], None),
    (DOWN, [NEGATIVE, of(0.79, 0.11, 0.1)], False),
    (DOWN, [NEGATIVE, of(0.81, 0.09, 0.1)], True),
    (DOWN, [of(0.95, 0.0, 0.05), of(1.0, 0.0, 0.0)], None),  # it cannot rise by more than 0.1
    (Expectation("not_lower", tolerance=0.1, label="1"), [of(0.92, 0.08, 0.0), of(1.0, 0.0, 0.0)], None),
    # DIR of phrases: the change of P(2) - P(0), whatever the first label is.
    (MARGIN, [POSITIVE, of(0.15, 0.1, 0.75)], False),
    (MARGIN, [POSITIVE, of(0.16, 0.1, 0.74)], True),
    (MARGIN, [NEUTRAL, NEGATIVE], True),
]


def test_the_cases_are_twenty():
    assert len(CASES) == 20


@pytest.mark.parametrize(("expectation", "texts", "is_failed"), CASES)
def test_a_case_fails_as_in_checklist(expectation, texts, is_failed):
    verdict = judge_case(expectation, texts)
    assert (None if verdict is None else verdict.is_failed) == is_failed


def test_the_worst_text_of_a_case_is_known():
    verdict = judge_case(SAME, [POSITIVE, NEUTRAL, NEGATIVE])
    assert (verdict.text, verdict.severity) == (2, pytest.approx(0.7))


@pytest.mark.parametrize(
    ("positive", "neutral", "label"),
    [(0.5, 1.0, "n"), (0.6, 0.7, "n"), (0.4, 0.7, "n"), (0.7, 0.0, "2"), (0.1, 0.0, "0")],
)
def test_undecided_predictions_are_neutral_as_in_the_notebook_of_checklist(positive, neutral, label):
    changed = with_neutral({"0": 1 - positive, "2": positive}, "n")
    assert sum(changed.values()) == pytest.approx(1)
    assert changed["n"] == pytest.approx(neutral)
    assert max(changed, key=changed.get) == label
    if neutral == 0:
        assert changed["2"] == positive
