"""Counterfactual texts: rows of a group with the terms of another group, and the share of labels that change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.audits.audit import Case, Subject
from framework.audits.grouping import Grouping
from framework.audits.intervals import wilson
from framework.audits.terms import GroupTerms
from framework.data.examples.splits import Record
from framework.data.reading.rows import Row
from framework.modules.inference import Inference
from framework.tasks.task import Task

Part = dict[str, str | int | float | None]
"""Row of the table of parts."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """Rows of a group with the terms of another group.

    Attributes:
        group: Group of the rows.
        other: Group whose terms they have.
        items: (swapped,) int64 indices of the rows in the split.
        texts: Text of each swapped row, by field.
    """

    group: str
    other: str
    items: np.ndarray
    texts: Sequence[Mapping[str, str]]


def has_counterfactuals(task: Task, records: Sequence[Record]) -> bool:
    """Returns True if the predictions of a task are labels of rows whose fields are texts."""
    texts = (getattr(record, name, None) for record in records for name in task.fields)
    return task.predicts_rows and bool(task.explained_labels) and all(isinstance(text, str) for text in texts)


def label_set(prediction: Mapping[str, Any]) -> frozenset[str]:
    """Returns the labels of a prediction; empty for predictions without labels."""
    return frozenset([prediction["label"]]) if "label" in prediction else frozenset(prediction.get("labels", ()))


class TermSwaps:
    """Rows of each group with the terms of each other group.

    Args:
        terms: Terms of the groups.
        grouping: Groups by terms.
        records: Rows of the split.
        subject: Model that is audited.

    Raises:
        DataError: The task cannot predict a swapped row.
    """

    def __init__(self, terms: GroupTerms, grouping: Grouping, records: Sequence[Record], subject: Subject) -> None:
        task = subject.task
        self._swaps = [
            _Swap(
                group,
                other,
                items,
                [
                    {name: terms.swapped(getattr(records[item], name), group, other) for name in task.fields}
                    for item in items.tolist()
                ],
            )
            for group, items in grouping.members.items()
            for other in terms.names
            if other != group
        ]
        texts = [each for swap in self._swaps for each in swap.texts]
        rows = [Row(number, None, dict(each)) for number, each in enumerate(texts, start=1)]
        for row in rows:
            task.check_row(row, subject.tokenizer)
        self._source = task.build_source(rows, subject.tokenizer)

    def judge(self, inference: Inference, predictions: Sequence[Mapping[str, Any]]) -> tuple[list[Part], list[Case]]:
        """Predicts the swapped rows. Collective: all ranks must call.

        Args:
            inference: Model on its device.
            predictions: Predictions of the rows of the split.

        Returns:
            One part for each pair of groups, and the rows whose labels change.
        """
        swapped = iter(inference.predict(self._source))
        parts: list[Part] = []
        cases: list[Case] = []
        for swap in self._swaps:
            name = f"{swap.group} -> {swap.other}"
            num_changed = 0
            for item, texts in zip(swap.items.tolist(), swap.texts, strict=True):
                before, after = label_set(predictions[item]), label_set(next(swapped))
                if before != after:
                    num_changed += 1
                    cases.append(Case(name, "\n".join(texts.values()), _shown(before), _shown(after)))
            interval = wilson(num_changed, len(swap.items))
            parts.append(
                {
                    "groups": "terms",
                    "group": name,
                    "measure": "changed_labels",
                    "label": None,
                    "value": num_changed / len(swap.items),
                    "low": None if interval is None else interval.low,
                    "high": None if interval is None else interval.high,
                    "p": None,
                    "rows": len(swap.items),
                }
            )
        return parts, cases


def _shown(labels: frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or "no label"
