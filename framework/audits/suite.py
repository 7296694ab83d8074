"""Reads suites of behaviour tests: JSON lines, one test a line, in the format of Cloze or of CheckList.

Keys of a test:
    name: Name.
    capability: Group of tests, for the table.
    kind: "label", "same", "not_lower" or "not_higher" (`framework.audits.expectations.Expectation`).
    cases: For "label" texts, or lists of texts that have the same label. For the other kinds lists of texts, the first
        of which is the original. A text of a task with several fields is an object by field.
    label: For "label": the expected label, or a list of accepted labels. For "not_lower" and "not_higher": the label
        whose probability is compared; missing: the predicted label of the original.
    labels: For "label" instead of `label`: one entry per case.
    tolerance: Tolerated change of a probability; missing: 0.
    against: Label whose probability is subtracted from that of `label`.
    ignored: Predicted label of the original with which a case does not count.
    templates, words: Instead of `cases`: cases with names in braces, and the words of each name. All combinations of
        the words that a template names become cases.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.audits.audit import Texts
from framework.audits.checklist import checklist_expectations, is_checklist, is_placeholder
from framework.audits.expectations import KINDS, Expectation
from framework.config.nodes import suggestion
from framework.data.reading.files import Reading, check_regular, decode_line, raw_lines
from framework.data.reading.json_rows import check_surrogates
from framework.errors import DataError, counted
from framework.files import parse_json

_KEYS = (
    *("name", "capability", "kind", "cases", "label", "labels", "tolerance", "against", "ignored"),
    *("templates", "words", "description"),
)
_MOST_CASES = 1_000_000
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class SuiteCase:
    """One case: texts of one expectation."""

    texts: tuple[Texts, ...]
    expectation: Expectation


@dataclass(frozen=True)
class BehaviourTest:
    """One test of a suite.

    Attributes:
        name: Name.
        capability: Group of tests; may be empty.
        kind: Kind of its expectations.
        cases: Cases; empty if the test cannot be run.
        reason: Reason why the test cannot be run, a sentence; None if it can.
    """

    name: str
    capability: str
    kind: str
    cases: Sequence[SuiteCase]
    reason: str | None = None

    def without_cases(self, reason: str) -> "BehaviourTest":
        """Returns the test as one that cannot be run."""
        return replace(self, cases=(), reason=reason)


def read_suite(path: Path, fields: Sequence[str]) -> list[BehaviourTest]:
    """Reads a suite.

    Args:
        path: File with one JSON object per line, plain, .gz or .zst.
        fields: Fields of the task. With one field, a text may be given without its name.

    Raises:
        DataError: The file cannot be read or has no test; a line is no test; or a case is no text.
    """
    check_regular(path)
    tests = [_read_test(where, value, fields) for where, value in _lines(path)]
    if not tests:
        raise DataError(f"{path} has no test. A suite has one test per line. Add a test.")
    names = [test.name for test in tests]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} has several tests with the name {name!r}. Names must differ. Rename one of them.")
    return tests


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, each with its file and line for messages."""
    for number, raw in raw_lines(path, Reading()):
        line = decode_line(path, number, raw)
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = parse_json(line)
        except ValueError as error:
            raise DataError(
                f"{where} is no JSON ({error}). A suite has one JSON object per line. Correct it."
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{where} is no JSON object. A suite has one JSON object per line. Correct it.")
        yield where, value


def _read_test(where: str, value: Mapping[str, Any], fields: Sequence[str]) -> BehaviourTest:
    if is_checklist(value):
        return _checklist_test(value, fields)
    unknown = [key for key in value if key not in _KEYS]
    if unknown:
        raise DataError(f"{where} has the unknown key {unknown[0]!r}. {suggestion(unknown[0], _KEYS)}")
    name, kind = value.get("name"), value.get("kind")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where} has the name {name!r}. It must be text. Add it.")
    check_surrogates(where, "name", name)
    where = f"{where}, test {name!r}"
    if kind not in KINDS:
        raise DataError(f"{where} has the kind {kind!r}. It must be one of {', '.join(KINDS)}. Correct it.")
    tolerance = value.get("tolerance", 0.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise DataError(f"{where} has the tolerance {tolerance!r}. It must be at least 0 and below 1. Correct it.")
    given, labels = _given_cases(where, value)
    base = Expectation(
        kind,
        tolerance=float(tolerance),
        label=None if kind == "label" else _name_or_none(value.get("label")),
        against=_name_or_none(value.get("against")),
        ignored=_name_or_none(value.get("ignored")),
    )
    if kind == "label":
        if labels is None and "label" not in value:
            raise DataError(f"{where} has no label. The kind label needs the expected one. Add label or labels.")
        accepted = (
            [_accepted(each) for each in labels] if labels is not None else [_accepted(value["label"])] * len(given)
        )
        expectations = [replace(base, accepted=each) for each in accepted]
    else:
        expectations = [base] * len(given)
    cases = [
        SuiteCase(_texts(f"{where}, case {number}", case, fields, kind), expectation)
        for number, (case, expectation) in enumerate(zip(given, expectations, strict=True), start=1)
    ]
    return BehaviourTest(name, str(value.get("capability") or ""), kind, cases)


def _checklist_test(value: Mapping[str, Any], fields: Sequence[str]) -> BehaviourTest:
    """Converts a test of CheckList. A test whose cases are no texts is kept without cases."""
    name, capability = str(value["name"]), str(value.get("capability") or "")
    kind, expectations, reason = checklist_expectations(value)
    test = BehaviourTest(name, capability, kind, (), reason)
    if reason is not None:
        return test
    cases = []
    for number, (case, expectation) in enumerate(zip(value["data"], expectations, strict=True), start=1):
        if is_placeholder(case):
            return test.without_cases(f"case {number} is {case!r}, which is no text")
        try:
            cases.append(SuiteCase(_texts(f"case {number}", case, fields, kind), expectation))
        except DataError as error:
            return test.without_cases(str(error))
    return replace(test, cases=cases)


def _given_cases(where: str, value: Mapping[str, Any]) -> tuple[list[Any], list[Any] | None]:
    """Returns the cases as they are given, templates expanded, and the label of each case if each has its own."""
    if ("cases" in value) == ("templates" in value):
        raise DataError(f"{where} must have either cases or templates. Add one of them, or remove the other.")
    key = "cases" if "cases" in value else "templates"
    given, labels = value[key], value.get("labels")
    if not isinstance(given, list) or not given:
        raise DataError(f"{where} has the {key} {given!r}. They must be a list that is not empty. Correct them.")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(given)):
        raise DataError(
            f"{where} has {len(given)} {key} and {len(labels) if isinstance(labels, list) else repr(labels)} labels. "
            f"Labels must be a list with one entry for each of the {key}. Correct them."
        )
    if key == "cases":
        return given, labels
    expanded = [expand(where, template, value.get("words", {})) for template in given]
    if labels is not None:
        labels = [label for label, cases in zip(labels, expanded, strict=True) for _ in cases]
    return [case for cases in expanded for case in cases], labels


def expand(where: str, template: Any, words: Mapping[str, Sequence[str]]) -> list[Any]:
    """Returns a case for each combination of the words that a template names.

    Args:
        where: File, line and test, for messages.
        template: Text with names in braces; or a list or object of such texts, in which a name has the same word.
        words: Words by name.

    Raises:
        DataError: A name has no words, or there are too many combinations.
    """
    names = list(dict.fromkeys(_NAME.findall(json.dumps(template, ensure_ascii=False))))
    for name in names:
        chosen = words.get(name) if isinstance(words, Mapping) else None
        if not isinstance(chosen, list) or not chosen or not all(isinstance(word, str) for word in chosen):
            raise DataError(
                f"{where} has a template with {{{name}}}, but words.{name} is {chosen!r}. It must be a list of texts. "
                "Add it."
            )
    count = math.prod(len(words[name]) for name in names)
    if count > _MOST_CASES:
        raise DataError(
            f"{where} has a template with {count:,} cases. At most {_MOST_CASES:,} are allowed. Use fewer words."
        )
    combinations = itertools.product(*(words[name] for name in names))
    return [_filled(template, dict(zip(names, chosen, strict=True))) for chosen in combinations]


def _filled(template: Any, words: Mapping[str, str]) -> Any:
    if isinstance(template, str):
        return _NAME.sub(lambda match: words[match[1]], template)
    if isinstance(template, list):
        return [_filled(each, words) for each in template]
    if isinstance(template, Mapping):
        return {field: _filled(each, words) for field, each in template.items()}
    return template


def _texts(where: str, case: Any, fields: Sequence[str], kind: str) -> tuple[Texts, ...]:
    given = case if isinstance(case, list) else [case]
    least = 1 if kind == "label" else 2
    if len(given) < least:
        raise DataError(f"{where} has {counted(len(given), 'text')}. The kind {kind} needs {least}. Add texts.")
    return tuple(_text(where, each, fields) for each in given)


def _text(where: str, text: Any, fields: Sequence[str]) -> Texts:
    values = {fields[0]: text} if isinstance(text, str) and len(fields) == 1 else text
    if not isinstance(values, Mapping) or set(values) != set(fields):
        shape = "a text" if len(fields) == 1 else f"an object with the texts {', '.join(fields)}"
        raise DataError(f"{where} is {str(text)[:60]!r}. It must be {shape}. Correct it.")
    for field in fields:
        if not isinstance(values[field], str) or not values[field].strip():
            raise DataError(
                f"{where} has the {field} {values[field]!r}. It must be a text that is not empty. Correct it."
            )
        check_surrogates(where, field, values[field])
    return {field: values[field] for field in fields}


def _accepted(label: Any) -> tuple[str, ...]:
    return tuple(str(each) for each in label) if isinstance(label, list) else (str(label),)


def _name_or_none(label: Any) -> str | None:
    return None if label is None else str(label)
