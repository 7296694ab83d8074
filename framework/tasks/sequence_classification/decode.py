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
