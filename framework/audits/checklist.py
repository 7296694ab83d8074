"""Expectations of suites that CheckList released (https://github.com/marcotcr/checklist, release_data).

CheckList stores expectations as Python functions, which data files do not contain. A test with labels expects them, and
a test of invariance has the tolerance 0.1. The other tests of the sentiment suite are listed here by their names, as
notebooks/Sentiment.ipynb defines them. Its labels are 0 (negative), 1 (neutral) and 2 (positive).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from framework.audits.expectations import Expectation, Kind

_TYPES = {"MFT", "INV", "DIR"}
_TOLERANCE = 0.1
_NEGATIVE, _NEUTRAL, _POSITIVE = "0", "1", "2"
_PLACEHOLDER = "<obj>"
"""Text that stands for an object in files that were converted from a pickled suite."""

_NOT_NEGATIVE = Expectation("label", (_NEUTRAL, _POSITIVE))
_WEAKER = Expectation("not_higher", tolerance=_TOLERANCE, ignored=_NEUTRAL)
_NAMED = {
    "simple negations: not negative": _NOT_NEGATIVE,
    "simple negations: I thought x was negative, but it was not (should be neutral or positive)": _NOT_NEGATIVE,
    "Hard: Negation of negative with neutral stuff in the middle (should be positive or neutral)": _NOT_NEGATIVE,
    "intensifiers": Expectation("not_lower", tolerance=_TOLERANCE, ignored=_NEUTRAL),
    "reducers": _WEAKER,
    '"used to" should reduce': _WEAKER,
    "add positive phrases": Expectation("not_lower", tolerance=_TOLERANCE, label=_POSITIVE, against=_NEGATIVE),
    "add negative phrases": Expectation("not_higher", tolerance=_TOLERANCE, label=_POSITIVE, against=_NEGATIVE),
}
_ALSO_ACCEPTED = {"Q & A: no": {_NEUTRAL: (_NEUTRAL, _POSITIVE)}}
"""Labels that the test also accepts, by name of the test and expected label."""


def is_checklist(value: Mapping[str, Any]) -> bool:
    """Returns whether a line of a suite has the format of CheckList: `name`, `type`, `labels` and `data`."""
    return value.get("type") in _TYPES and isinstance(value.get("data"), list) and isinstance(value.get("name"), str)


def is_placeholder(case: Any) -> bool:
    """Returns whether a case stands for an object that the file does not contain."""
    return _PLACEHOLDER in case if isinstance(case, list) else bool(case == _PLACEHOLDER)


def checklist_expectations(value: Mapping[str, Any]) -> tuple[Kind, list[Expectation], str | None]:
    """Returns the kind of a test, the expectation of each case, and the reason why the test cannot be run.

    Args:
        value: Line of a suite that `is_checklist` accepts.
    """
    name, labels, number = value["name"], value.get("labels"), len(value["data"])
    if value["type"] == "INV":
        return "same", [Expectation("same", tolerance=_TOLERANCE)] * number, None
    if name in _NAMED:
        return _NAMED[name].kind, [_NAMED[name]] * number, None
    if value["type"] == "DIR" or labels is None:
        kind: Kind = "not_lower" if value["type"] == "DIR" else "label"
        return kind, [], "the file does not contain its expectation. Write the test in the format of Cloze"
    also = _ALSO_ACCEPTED.get(name, {})
    each: Sequence[Any] = labels if isinstance(labels, list) else [labels] * number
    if len(each) != number:
        return "label", [], f"it has {number} cases and {len(each)} labels"
    return "label", [Expectation("label", also.get(str(label), _names(label))) for label in each], None


def _names(label: Any) -> tuple[str, ...]:
    return tuple(str(each) for each in label) if isinstance(label, list) else (str(label),)
