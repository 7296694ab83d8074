"""From scores to what a person reads: predicted labels, and a table of the classes."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from framework.tasks.examination import Examination, ExaminedRow, FoundItems, count_confusions


class Labelled(Protocol):
    """A row of the data: where it stands, and its label."""

    @property
    def location(self) -> str:
        """File and row."""

    @property
    def label(self) -> object:
        """As in the file."""


def decode_labels(logits: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The best label and all probabilities.

    Args:
        logits: (sequences, labels).
        labels: Names in the order of scores.

    Returns:
        For each sequence `label`, its `probability`, and `probabilities` by label; of equal scores the first label
        wins.
    """
    rows = logits.float().softmax(dim=-1).cpu().tolist()
    predictions = []
    for row in rows:
        best = max(range(len(labels)), key=row.__getitem__)
        by_label = dict(zip(labels, row, strict=True))
        predictions.append({"label": labels[best], "probability": row[best], "probabilities": by_label})
    return predictions


def class_scores(right: Tensor, present: Tensor, predicted: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; 0 where a quotient has no denominator.

    Args:
        right: (labels,) int64 sequences that have the label and for which it is predicted.
        present: (labels,) int64 sequences that have it.
        predicted: (labels,) int64 sequences for which it is predicted.
        labels: Names in the order of scores.
    """
    return [
        {
            "label": label,
            "precision": hits / chosen if chosen else 0.0,
            "recall": hits / there if there else 0.0,
            "f1": 2 * hits / (there + chosen) if there + chosen else 0.0,
            "sequences": there,
        }
        for label, hits, there, chosen in zip(labels, right.tolist(), present.tolist(), predicted.tolist(), strict=True)
    ]


def examine_labels(
    records: Sequence[Labelled], texts: Sequence[str], found: FoundItems, labels: Sequence[str]
) -> Examination:
    """A row for each sequence that has one label; nothing is asked of those whose label is none of `labels`.

    Args:
        records: Where each sequence is from, and its label.
        texts: Of the sequences.
        found: Of `decode_labels`.
        labels: Names in the order of scores.
    """
    known = set(labels)
    rows = []
    for place, (record, text, told) in enumerate(zip(records, texts, found.decoded, strict=True)):
        is_asked = record.label in known
        rows.append(
            ExaminedRow(
                length=int(found.lengths[place]),
                loss=found.loss(place) if is_asked else None,
                score=float(told["label"] == record.label) if is_asked else None,
                confidence=told["probability"],
                expected=str(record.label),
                predicted=told["label"],
                text=text,
                location=record.location,
            )
        )
    confusion = count_confusions([(row.expected, row.predicted) for row in rows], labels)
    return Examination(rows, "accuracy", confusion)
