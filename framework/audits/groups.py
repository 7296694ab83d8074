"""Compares how well a model works for groups of people: metrics, rates of labels, and counterfactual texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.audits.audit import Finding, ModelAudit, Subject
from framework.audits.counterfactuals import TermSwaps, has_counterfactuals, label_set
from framework.audits.group_comparison import Compared, Labels, compare_labels, compare_metrics
from framework.audits.grouping import (
    Grouping,
    build_grouping,
    column_values,
    read_terms,
    split_records,
    term_values,
)
from framework.audits.item_metrics import measure_items
from framework.data.examples.splits import Record
from framework.data.planning.plan import SequenceSource
from framework.errors import ConfigError, DataError, check_at_least
from framework.modules.inference import Inference

_TERMS = "terms"

_BETWEEN = "between groups"

_MIN_EXPECTED = 10
"""Rows with and rows without a label that each group needs for the label to decide the rate of the audit."""


class Groups(ModelAudit):
    """Metrics of the task, selection rates and error rates by group.

    The rate of the audit is the largest equalized odds difference of a label with at least 10 rows with and 10 without
    it in each group, or else the largest demographic parity difference. For tasks without labels it is the largest
    difference of the task's best metric.

    Args:
        columns: Columns of the file of the split; the values of each column are groups.
        terms: YAML file of words by group, `{female: [she, her], male: [he, his]}`. A row belongs to the group whose
            terms its text contains; rows with terms of several groups belong to none. The terms are also swapped.
        min_rows: Smallest group for which numbers are reported.
        num_samples: Number of bootstrap resamplings and of permutations.

    Raises:
        ConfigError: Neither columns nor terms are given, or a number is too small.
    """

    def __init__(
        self, columns: Sequence[str] = (), terms: str | None = None, min_rows: int = 50, num_samples: int = 1000
    ) -> None:
        if not columns and terms is None:
            raise ConfigError(
                "audit.groups.columns and audit.groups.terms are empty. The audit needs groups. Give the columns of "
                "the file, for example audit.groups.columns=[gender], or audit.groups.terms=FILE.yaml."
            )
        check_at_least("audit.groups.min_rows", min_rows, 2)
        check_at_least("audit.groups.num_samples", num_samples, 100)
        self._columns = list(columns)
        self._terms = terms
        self._min_rows = min_rows
        self._num_samples = num_samples

    def check(self, subject: Subject) -> None:
        """Reads the rows of the split and their groups.

        Raises:
            ConfigError: The split keeps no rows, the task has no metrics of rows, or the terms cannot be compared.
            DataError: A file cannot be read or lacks a column, or a grouping has fewer than two large groups.
        """
        terms = None if self._terms is None else read_terms(self._terms)
        self._seed, self._task, self._split = subject.seed, subject.task, subject.split
        if not subject.task.measures_rows:
            raise ConfigError(
                f"{type(subject.task).__name__} has metrics of whole splits only. The audit groups needs metrics of "
                "chosen rows. Audit a run of classification, regression, multiple choice, relation extraction, token "
                "classification or question answering."
            )
        self._source: SequenceSource = subject.source
        self._records = split_records(self._source, subject.split)
        columns: list[list[str | None]] = []
        if self._columns:
            layout = subject.trained.file_layout
            texts = () if layout is None else tuple(layout.field_columns.values())
            columns = column_values(self._records, self._columns, getattr(layout, "format", None), texts)
            if subject.masking is not None:  # results name the groups
                columns = [[each and subject.masking.text(each) for each in values] for values in columns]
        self._notes: list[str] = []
        self._groupings = [
            build_grouping(name, values, self._min_rows) for name, values in zip(self._columns, columns, strict=True)
        ]
        self._swaps: TermSwaps | None = None
        num_several = 0
        if terms is not None:
            values, num_several = term_values(("\n".join(record.identity) for record in self._records), terms)
            self._groupings.append(build_grouping(_TERMS, values, self._min_rows))
            if has_counterfactuals(subject.task, self._records):
                self._swaps = TermSwaps(terms, self._groupings[-1], self._records, subject)
            else:
                self._notes.append(f"{type(subject.task).__name__} has no counterfactual texts; terms are not swapped.")
        for grouping in self._groupings:
            self._notes += _notes_of(grouping, self._min_rows, num_several if grouping.name == _TERMS else 0)

    def measure(self, inference: Inference) -> Finding:
        """Runs the model on the split and on the swapped rows. Collective: all ranks must call.

        Raises:
            DataError: The metric that decides the rate is undefined in a group of each grouping.
        """
        results = measure_items(inference, self._source)
        labels = _labels_of(self._task.explained_labels, results.predictions, self._records)
        parts: list[dict[str, str | int | float | None]] = []
        worst: Compared | None = None
        name = ""
        for grouping in self._groupings:
            compared = list(compare_metrics(grouping, results.metrics, self._num_samples, self._seed))
            if labels is not None:
                compared += compare_labels(grouping, labels, self._num_samples, self._seed)
            parts += [_part(grouping, each) for each in compared if each.group is None]
            parts += [_part(grouping, each) for each in compared if each.group is not None]
            candidate = self._largest(compared, grouping, labels)
            if math.isfinite(candidate.value) and (worst is None or candidate.value > worst.value):
                worst, name = candidate, grouping.name
        if worst is None:
            names = ", ".join(grouping.name for grouping in self._groupings)
            raise DataError(
                f"{self._task.best_metric} is undefined in a group of {names}. A comparison needs a value in each "
                "group. Give more rows, or raise audit.groups.min_rows to leave out small groups."
            )
        swaps, cases = ([], []) if self._swaps is None else self._swaps.judge(inference, results.predictions)
        label = "" if worst.label is None else f" of the label {worst.label}"
        tested = "" if worst.p is None else f" (p = {worst.p:.3g})"
        return Finding(
            measure=f"largest {worst.measure.replace('_', ' ')}{label} between groups",
            rate=min(max(worst.value, 0.0), 1.0),
            interval=worst.interval,
            num_cases=sum(len(items) for grouping in self._groupings for items in grouping.members.values()),
            summary=f"The largest {worst.measure.replace('_', ' ')}{label} is {worst.value:.3f} between the groups of "
            f"{name}{tested}.",
            parts=[*swaps, *parts],
            worst=cases,
            notes=self._notes,
        )

    def _largest(self, compared: Sequence[Compared], grouping: Grouping, labels: Labels | None) -> Compared:
        """Returns the comparison that decides the rate."""
        if labels is None:
            best = f"{self._task.best_metric}_difference"
            found = [each for each in compared if each.measure == best]
            return found[0] if found else next(each for each in compared if each.group is None)
        present = np.stack([labels.expected[items].sum(axis=0) for items in grouping.members.values()])
        absent = np.stack([(~labels.expected[items]).sum(axis=0) for items in grouping.members.values()])
        enough = (np.minimum(present, absent) >= _MIN_EXPECTED).all(axis=0)
        frequent = {label for label, is_frequent in zip(labels.names, enough, strict=True) if is_frequent}
        found = [
            each
            for each in compared
            if each.measure == "equalized_odds_difference" and each.label in frequent and math.isfinite(each.value)
        ] or [each for each in compared if each.measure == "demographic_parity_difference"]
        return max(found, key=lambda each: each.value)


def _labels_of(
    names: Sequence[str], predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> Labels | None:
    """Returns the labels of rows; None if predictions have none."""
    if not predictions or not ({"label", "labels"} & predictions[0].keys()):
        return None
    columns = {name: index for index, name in enumerate(names)}
    predicted, expected = (np.zeros((len(records), len(names)), dtype=bool) for _ in range(2))
    for row, (prediction, record) in enumerate(zip(predictions, records, strict=True)):
        for array, given in ((predicted, label_set(prediction)), (expected, _as_set(record.answer))):
            array[row, [columns[label] for label in given if label in columns]] = True
    return Labels(names, predicted, expected)


def _as_set(answer: object) -> frozenset[str]:
    return frozenset(map(str, answer)) if isinstance(answer, tuple) else frozenset([str(answer)])


def _part(grouping: Grouping, compared: Compared) -> dict[str, str | int | float | None]:
    members = grouping.members
    rows = sum(map(len, members.values())) if compared.group is None else len(members[compared.group])
    return {
        "groups": grouping.name,
        "group": compared.group or _BETWEEN,
        "measure": compared.measure,
        "label": compared.label,
        "value": compared.value if math.isfinite(compared.value) else None,
        "low": None if compared.interval is None else compared.interval.low,
        "high": None if compared.interval is None else compared.interval.high,
        "p": compared.p,
        "rows": rows,
    }


def _notes_of(grouping: Grouping, min_rows: int, num_several: int) -> list[str]:
    notes = []
    if grouping.too_small:
        sizes = ", ".join(f"{group} ({count})" for group, count in grouping.too_small.items())
        notes.append(f"{grouping.name}: groups with fewer than {min_rows} rows are too small for numbers: {sizes}.")
    if grouping.num_outside:
        several = f" ({num_several:,} have terms of several groups)" if num_several else ""
        notes.append(f"{grouping.name}: {grouping.num_outside:,} rows belong to no group{several}.")
    return notes
