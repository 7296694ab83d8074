"""Conversion of scores to predicted labels, a table of the classes and an error analysis."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from framework.tasks.examination import Examination, ExaminedRow, ItemResults, count_confusions


class Labelled(Protocol):
    """A row of the data with its location and label."""

    @property
    def location(self) -> str:
        """Returns file and row."""

    @property
    def label(self) -> object:
        """Returns the label as in the file."""


def decode_labels(logits: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the best label and all probabilities.

    Args:
        logits: (sequences, labels).
        labels: Names in the order of scores.

    Returns:
        For each sequence `label`, its `probability`, and `probabilities` by label; the first of equal scores is the
        best.
    """
    rows = logits.float().softmax(dim=-1).cpu().tolist()
    predictions = []
    for row in rows:
        best = max(range(len(labels)), key=row.__getitem__)
        by_label = dict(zip(labels, row, strict=True))
        predictions.append({"label": labels[best], "probability": row[best], "probabilities": by_label})
    return predictions


def chosen_scores(logits: Tensor, columns: Sequence[int]) -> Tensor:
    """Returns (sequences,) fp32: the logit of each real sequence in its column.

    Args:
        logits: (sequences, labels), dummies included at the end.
        columns: Column of each real sequence.
    """
    rows = torch.arange(len(columns), device=logits.device)
    return logits.float()[rows, torch.tensor(columns, device=logits.device)]


def class_scores(right: Tensor, present: Tensor, predicted: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Computes precision, recall and F1 of each class; a quotient with a zero denominator is 0.

    Args:
        right: (labels,) int64 number of sequences with the label for which it is predicted.
        present: (labels,) int64 number of sequences with the label.
        predicted: (labels,) int64 number of sequences for which the label is predicted.
        labels: Names in the order of scores.
    """
    return [
        {
            "label": label,
            "precision": hits / guesses if guesses else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (support + guesses) if support + guesses else 0.0,
            "sequences": support,
        }
        for label, hits, support, guesses in zip(
            labels, right.tolist(), present.tolist(), predicted.tolist(), strict=True
        )
    ]


def examine_labels(
    records: Sequence[Labelled], texts: Sequence[str], results: ItemResults, labels: Sequence[str]
) -> Examination:
    """Builds the error analysis of sequences with one label; rows with a label outside `labels` have no score.

    Args:
        records: Location and label of each sequence.
        texts: Text of each sequence.
        results: Predictions of `decode_labels`, with losses and lengths.
        labels: Names in the order of scores.
    """
    known = set(labels)
    rows = []
    for index, (record, text, prediction) in enumerate(zip(records, texts, results.decoded, strict=True)):
        is_scored = record.label in known
        rows.append(
            ExaminedRow(
                length=int(results.lengths[index]),
                loss=results.loss(index) if is_scored else None,
                score=float(prediction["label"] == record.label) if is_scored else None,
                confidence=prediction["probability"],
                expected=str(record.label),
                predicted=prediction["label"],
                text=text,
                location=record.location,
            )
        )
    confusion = count_confusions([(row.expected, row.predicted) for row in rows], labels)
    return Examination(rows, "accuracy", confusion)
