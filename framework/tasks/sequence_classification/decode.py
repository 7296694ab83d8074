"""From scores to what a person reads: predicted labels, and a table of the classes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


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


def class_scores(confusion: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; 0 where a quotient has no denominator.

    Args:
        confusion: (labels, labels) int64 counts, true label first.
        labels: Names in the order of scores.
    """
    table = []
    for place, label in enumerate(labels):
        right = int(confusion[place, place])
        present, predicted = int(confusion[place].sum()), int(confusion[:, place].sum())
        table.append(
            {
                "label": label,
                "precision": right / predicted if predicted else 0.0,
                "recall": right / present if present else 0.0,
                "f1": 2 * right / (present + predicted) if present + predicted else 0.0,
                "sequences": present,
            }
        )
    return table
