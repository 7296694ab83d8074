"""Expectations of behaviour tests, defined as in CheckList (Ribeiro et al. 2020, arXiv:2005.04118, `checklist.expect`).

A case fails if any of its texts fails. A case to which its expectation does not apply is not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["label", "same", "not_lower", "not_higher"]

KINDS: tuple[Kind, ...] = ("label", "same", "not_lower", "not_higher")

_DECIMALS = 6
"""Decimals at which changes are compared with a tolerance. The way in which rows are packed changes later decimals."""

_NEUTRAL_MARGIN = 1 / 6
"""Distance of a probability from 1/2 below which CheckList's sentiment tests call a two-label prediction neutral."""

Probabilities = Mapping[str, float]
"""Probability of each label."""


@dataclass(frozen=True)
class Expectation:
    """Expectation of one case.

    Attributes:
        kind: "label": each text has one of `accepted`. The others compare each further text with the first: "same": it
            has the same label, or the probability of the first text's label changes by at most `tolerance`;
            "not_lower" and "not_higher": the score does not fall or rise by more than `tolerance`.
        accepted: Accepted labels, for "label".
        tolerance: Tolerated change of a probability.
        label: Label whose probability is the score; None: the predicted label of the first text.
        against: Label whose probability is subtracted from the score; None: none.
        ignored: The case does not apply if the first text has this label; None: it always applies.
    """

    kind: Kind
    accepted: tuple[str, ...] = ()
    tolerance: float = 0.0
    label: str | None = None
    against: str | None = None
    ignored: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Result of one case.

    Attributes:
        is_failed: True if the case fails.
        severity: Probability of the wrong label, or size of the change.
        text: Index of the worst text of the case.
    """

    is_failed: bool
    severity: float
    text: int


def predicted_label(probabilities: Probabilities) -> str:
    """Returns the label with the largest probability; the first of equal ones."""
    return max(probabilities, key=probabilities.__getitem__)


def with_neutral(probabilities: Probabilities, neutral: str) -> dict[str, float]:
    """Returns the probabilities of a two-label model with a third label for undecided predictions.

    As in CheckList's sentiment tests, a prediction is undecided if the larger probability p is below 2/3. The third
    label then has the probability 1 - 3 (p - 1/2), and the predicted label has the rest.

    Args:
        probabilities: Probabilities of two labels.
        neutral: Name of the third label.
    """
    best = predicted_label(probabilities)
    distance = probabilities[best] - 0.5
    if distance >= _NEUTRAL_MARGIN:
        return {**probabilities, neutral: 0.0}
    return {label: 3 * distance if label == best else 0.0 for label in probabilities} | {neutral: 1 - 3 * distance}


def judge_case(expectation: Expectation, texts: Sequence[Probabilities]) -> Verdict | None:
    """Judges one case; None if the expectation does not apply.

    Args:
        expectation: Expectation of the case.
        texts: Probabilities of each text of the case.
    """
    if expectation.kind == "label":
        return _worst([_label_verdict(expectation, each, index) for index, each in enumerate(texts)])
    first, label = texts[0], predicted_label(texts[0])
    if expectation.ignored is not None and label == expectation.ignored:
        return None
    if expectation.kind != "same" and expectation.against is None:
        start = round(first[expectation.label or label], _DECIMALS)
        # The score cannot change enough to fail.
        limit = start if expectation.kind == "not_lower" else 1 - start
        if limit <= expectation.tolerance:
            return None
    return _worst(
        [_change_verdict(expectation, first, label, each, index) for index, each in enumerate(texts) if index > 0]
    )


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: (verdict.is_failed, round(verdict.severity, 3), -verdict.text))


def _label_verdict(expectation: Expectation, text: Probabilities, index: int) -> Verdict:
    label = predicted_label(text)
    return Verdict(label not in expectation.accepted, text[label], index)


def _change_verdict(
    expectation: Expectation, first: Probabilities, label: str, text: Probabilities, index: int
) -> Verdict:
    if expectation.kind == "same":
        change = round(abs(text[label] - first[label]), _DECIMALS)
        return Verdict(predicted_label(text) != label and change > expectation.tolerance, change, index)
    rise = _score(expectation, text, label) - _score(expectation, first, label)
    change = round(-rise if expectation.kind == "not_lower" else rise, _DECIMALS)
    return Verdict(change > expectation.tolerance, change, index)


def _score(expectation: Expectation, text: Probabilities, label: str) -> float:
    score = text[expectation.label or label]
    return score if expectation.against is None else score - text[expectation.against]
