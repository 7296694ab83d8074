"""Behaviour tests: suites of tests in the manner of CheckList, or edits of the user's own rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.audits.audit import Case, Finding, Prediction, RowAudit, Subject, Texts
from framework.audits.expectations import Expectation, Verdict, judge_case, predicted_label, with_neutral
from framework.audits.intervals import Interval, bootstrap, wilson
from framework.audits.labels import check_mapping, check_single_labels, map_labels
from framework.audits.own_rows import check_editable, chosen_rows
from framework.audits.perturbations import EDITS, edited
from framework.audits.suite import BehaviourTest, SuiteCase, read_suite
from framework.errors import ConfigError, DataError, check_at_least, counted

_NAME = "behaviour"
_UNDECIDED = "(undecided)"
"""Name of the prediction of a two-label model whose larger probability is below 2/3."""

_OWN_ROWS = "edits of own rows"


class Behaviour(RowAudit):
    """Share of test cases that fail.

    Args:
        suite: File of a suite (`framework.audits.suite`); None: edits of the rows of the user's split, which should
            not change their labels.
        labels: {label of the suite: label of the model}; tests that need another label are not run. None: the suite has
            the labels of the model.
        neutral: Label of the suite for undecided predictions of a model with two labels: as in CheckList's sentiment
            tests, those whose larger probability is below 2/3. None: there is none.
        edits: Names of the edits of own rows (`framework.audits.perturbations`); None: all.
        tolerance: Change of the probability of the original label that an edit may cause although the label changes.
        max_rows: Number of own rows, a seeded sample; None: all.

    Raises:
        ConfigError: An edit is unknown, or a number is out of its range.
    """

    def __init__(
        self,
        suite: str | None = None,
        labels: dict[str, str] | None = None,
        neutral: str | None = None,
        edits: list[str] | None = None,
        tolerance: float = 0.1,
        max_rows: int | None = 500,
    ) -> None:
        for name in edits or ():
            if name not in EDITS:
                raise ConfigError(
                    f"audit.behaviour.edits contains {name!r}, which is unknown. Choose some of {', '.join(EDITS)}."
                )
        if max_rows is not None:
            check_at_least("audit.behaviour.max_rows", max_rows, 1, "Use null for all rows.")
        if not 0 <= tolerance < 1:
            raise ConfigError(
                f"audit.behaviour.tolerance is {tolerance}. It must be at least 0 and below 1. The default is 0.1."
            )
        self._suite = suite
        self._labels = labels
        self._neutral = neutral
        self._edits = edits if edits is not None else list(EDITS)
        self._tolerance = tolerance
        self._max_rows = max_rows
        self._tests: list[BehaviourTest] = []
        self._units: list[np.ndarray] | None = None
        self._seed = 0

    def check(self, subject: Subject) -> None:
        """Reads the suite, or edits the rows of the split.

        Raises:
            ConfigError: The task does not predict single labels, the model lacks a label of the suite, or the task
                does not allow edits.
            DataError: The suite cannot be read, a case is no text, or no test can be run.
        """
        known = check_single_labels(subject, _NAME)
        if self._suite is None:
            self._tests, self._units = self._edited_rows(subject)
        else:
            tests = read_suite(Path(self._suite), subject.task.fields)
            self._tests = self._with_labels_of_model(tests, known)
        self._seed = subject.seed
        if not any(test.cases for test in self._tests):
            first = self._tests[0]
            raise DataError(
                f"no test of {self._suite or _OWN_ROWS} can be run. {first.name!r}: {first.reason}. Correct the tests."
            )

    def rows(self) -> Sequence[Texts]:
        """Returns the texts of all cases."""
        return [texts for test in self._tests for each in test.cases for texts in each.texts]

    def judge(self, predictions: Sequence[Prediction]) -> Finding:
        """Returns the share of failed cases, and the rate of each test."""
        remaining = iter(predictions)
        verdicts: list[list[Verdict | None]] = []
        worst: list[tuple[int, float, Case]] = []
        for test in self._tests:
            own: list[tuple[float, Case]] = []
            judged = []
            for each in test.cases:
                probabilities = [self._probabilities(next(remaining)) for _ in each.texts]
                verdict = judge_case(each.expectation, probabilities)
                judged.append(verdict)
                if verdict is not None and verdict.is_failed:
                    own.append((round(verdict.severity, 3), _shown(test.name, each, probabilities, verdict)))
            verdicts.append(judged)
            own.sort(key=lambda pair: -pair[0])
            worst += [(rank, severity, shown) for rank, (severity, shown) in enumerate(own)]
        worst.sort(key=lambda entry: (entry[0], -entry[1]))  # the worst case of each test first
        counted_cases = [[each for each in judged if each is not None] for judged in verdicts]
        total = sum(map(len, counted_cases))
        failed = [sum(each.is_failed for each in judged) for judged in counted_cases]
        parts = [
            _part(test, number, len(judged))
            for test, number, judged in zip(self._tests, failed, counted_cases, strict=True)
        ]
        return Finding(
            measure="failed cases",
            rate=sum(failed) / total if total else 0.0,
            interval=self._interval(verdicts, sum(failed), total),
            num_cases=total,
            summary=_summary(parts, sum(failed), total),
            parts=parts,
            worst=[case for _, _, case in worst],
            notes=_notes(self._tests, verdicts),
        )

    def _probabilities(self, prediction: Prediction) -> Mapping[str, float]:
        probabilities: Mapping[str, float] = prediction["probabilities"]
        return probabilities if self._neutral is None else with_neutral(probabilities, _UNDECIDED)

    def _interval(self, verdicts: Sequence[Sequence[Verdict | None]], failed: int, total: int) -> Interval | None:
        """Returns the interval of the rate. Edits of one row are not independent, so rows are resampled."""
        if self._units is None:
            return wilson(failed, total)
        number = max(int(units.max(initial=-1)) for units in self._units) + 1
        cases, failures = np.zeros(number), np.zeros(number)
        for units, judged in zip(self._units, verdicts, strict=True):
            np.add.at(cases, units, [each is not None for each in judged])
            np.add.at(failures, units, [each is not None and each.is_failed for each in judged])
        return bootstrap(number, lambda chosen: failures[chosen].sum() / max(1, cases[chosen].sum()), self._seed)

    def _with_labels_of_model(self, tests: Sequence[BehaviourTest], known: tuple[str, ...]) -> list[BehaviourTest]:
        """Returns the tests with expectations in labels of the model."""
        label_key = f"audit.{_NAME}.labels"
        if self._neutral is not None and len(known) != 2:
            raise ConfigError(
                f"audit.{_NAME}.neutral is {self._neutral!r}, but the model has {len(known)} labels. Undecided "
                "predictions are defined for two labels. Map the label instead."
            )
        needed = {label for test in tests for each in test.cases for label in _needed(each.expectation)}
        if self._labels is None:
            needed.discard(str(self._neutral))
            mapping = map_labels(needed, None, known, label_key)
        else:
            mapping = check_mapping(self._labels, known, label_key)
        if self._neutral is not None:
            mapping[str(self._neutral)] = _UNDECIDED
        return [_mapped(test, mapping) for test in tests]

    def _edited_rows(self, subject: Subject) -> tuple[list[BehaviourTest], list[np.ndarray]]:
        """Returns one test per edit, and the index of the row of each case among the chosen rows."""
        records = check_editable(subject, _NAME, f"Give audit.{_NAME}.suite=FILE")
        chosen = chosen_rows(len(records), self._max_rows, subject.seed)
        expectation = Expectation("same", tolerance=self._tolerance)
        tests, units = [], []
        for name in self._edits:
            cases, own_units = [], []
            for unit, row in enumerate(chosen):
                original = {field: getattr(records[row], field) for field in subject.task.fields}
                changed = {field: edited(name, text, subject.seed, row) for field, text in original.items()}
                if changed != original:
                    cases.append(SuiteCase((original, changed), expectation))
                    own_units.append(unit)
            reason = None if cases else "the edit applies to no row"
            tests.append(BehaviourTest(name, _OWN_ROWS, expectation.kind, cases, reason))
            units.append(np.array(own_units, dtype=np.int64))
        return tests, units


def _needed(expectation: Expectation) -> tuple[str, ...]:
    """Returns the labels without which an expectation cannot be judged."""
    return (*expectation.accepted, *(each for each in (expectation.label, expectation.against) if each is not None))


def _mapped(test: BehaviourTest, mapping: Mapping[str, str]) -> BehaviourTest:
    """Returns a test with mapped labels; without cases if a case needs a label that is not mapped."""
    cases = []
    done: dict[Expectation, Expectation] = {}
    for each in test.cases:
        expectation = each.expectation
        if expectation not in done:
            accepted = tuple(mapping[label] for label in expectation.accepted if label in mapping)
            missing = [label for label in _needed(expectation) if label not in mapping]
            if missing and not accepted:
                return test.without_cases(f"it expects the label {', '.join(missing)}, which is not mapped")
            done[expectation] = replace(
                expectation,
                accepted=accepted,
                label=mapping.get(str(expectation.label)),
                against=mapping.get(str(expectation.against)),
                ignored=mapping.get(str(expectation.ignored)),
            )
        cases.append(replace(each, expectation=done[expectation]))
    return replace(test, cases=cases)


def _shown(name: str, case: SuiteCase, probabilities: Sequence[Mapping[str, float]], verdict: Verdict) -> Case:
    """Returns a failed case as the report shows it."""
    expectation, text = case.expectation, probabilities[verdict.text]
    label = predicted_label(text)
    shown = "\n".join(case.texts[verdict.text].values())
    predicted = f"{label} ({text[label]:.3f})"
    if expectation.kind == "label":
        return Case(name, shown, " or ".join(expectation.accepted), predicted)
    first = predicted_label(probabilities[0])
    shown = "\n".join(case.texts[0].values()) + "\n→ " + shown
    if expectation.kind == "same":
        return Case(name, shown, f"{first} ({probabilities[0][first]:.3f})", predicted)
    scored = expectation.label or first
    direction = "at least" if expectation.kind == "not_lower" else "at most"
    against = f" minus {expectation.against}" if expectation.against is not None else ""
    return Case(
        name,
        shown,
        f"{scored}{against} {direction} as before ({probabilities[0][scored]:.3f})",
        f"{scored} ({text[scored]:.3f})",
    )


def _part(test: BehaviourTest, failed: int, total: int) -> dict[str, str | int | float | None]:
    interval = wilson(failed, total)
    return {
        "test": test.name,
        "capability": test.capability,
        "kind": test.kind,
        "cases": total,
        "failed": failed,
        "rate": failed / total if total else None,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
    }


def _summary(parts: Sequence[Mapping[str, Any]], failed: int, total: int) -> str:
    rates = [part["rate"] for part in parts if part["rate"] is not None]
    if not rates:
        return "No case of a test applies."
    worst = max((part for part in parts if part["rate"] is not None), key=lambda part: part["rate"])
    return (
        f"{failed:,} of {counted(total, 'case')} of {counted(len(rates), 'test')} fail. The highest rate is "
        f"{worst['rate']:.1%}, in {worst['test']!r}."
    )


def _notes(tests: Sequence[BehaviourTest], verdicts: Sequence[Sequence[Verdict | None]]) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        if not test.cases:
            reasons[str(test.reason)].append(repr(test.name))
    notes = [f"Not run, because {reason}: {', '.join(names)}." for reason, names in reasons.items()]
    ignored = sum(each is None for judged in verdicts for each in judged)
    if ignored:
        notes.append(f"The expectation of {counted(ignored, 'case')} does not apply to their predictions.")
    return notes
