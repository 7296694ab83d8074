"""Macro F1 of relations, as the scorer of SemEval-2010 task 8 counts its official result.

Hendrickx et al. 2010 ("SemEval-2010 Task 8: Multi-Way Classification of Semantic Relations Between Pairs of Nominals",
section 5) and semeval2010_task8_scorer-v1.2.pl, "(9+1)-way evaluation taking directionality into account": the two
directions of a relation are one class. A prediction with the wrong direction counts as predicted, but not as correct.
The mean is over the relations in the data, without "Other".
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framework.metrics.classification import ConfusionMetric

_DIRECTION = re.compile(r"\((e1,e2|e2,e1)\)$")


def relation_of(label: str) -> str:
    """Returns the label without its direction: `Cause-Effect` of `Cause-Effect(e2,e1)`."""
    return _DIRECTION.sub("", label)


class RelationF1(ConfusionMetric):
    """Mean F1 over relations. Both directions of a relation are counted together.

    For a relation, P = correct / predicted and R = correct / present. Only the correct direction is correct; predicted
    and present count either direction. F1 is 0 without a correct prediction. Labels without a direction are relations
    of their own: then this is the macro F1 of the labels in the data.

    Args:
        labels: Names in the order of scores.
        excluded_label: Label that is no relation. Wrong predictions for its rows still reduce precision. None: all
            labels are relations.

    Attributes:
        relations: Names without direction, in the order of their first labels, including the excluded one.
    """

    def __init__(self, labels: Sequence[str], excluded_label: str | None = "Other") -> None:
        super().__init__(len(labels))
        self.relations = tuple(dict.fromkeys(relation_of(label) for label in labels))
        self.relation_indices = [self.relations.index(relation_of(label)) for label in labels]
        self.counted = [relation != excluded_label for relation in self.relations]

    def value(self, matrix: Tensor) -> Tensor:
        """Returns macro F1 in [0, 1]; 0 without relations in the data."""
        right, present, predicted, _ = self._counts(matrix)
        scores = 2 * right / (present + predicted).clamp(min=1)
        counted = torch.tensor(self.counted, device=matrix.device) & (present > 0)
        return torch.where(counted, scores, 0.0).sum() / counted.sum().clamp(min=1)

    def rows(self) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and the number of wrong directions of each relation; call `compute` first."""
        columns = (counts.tolist() for counts in self._counts(self.matrix))
        return [
            {
                "label": relation,
                "precision": right / predicted if predicted else 0.0,
                "recall": right / present if present else 0.0,
                "f1": 2 * right / (present + predicted) if present + predicted else 0.0,
                "wrong_direction": either - right,
                "sequences": present,
            }
            for relation, right, present, predicted, either in zip(self.relations, *columns, strict=True)
        ]

    def _counts(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns counts by relation: correct, present, predicted, and predicted in either direction where present."""
        indices = torch.tensor(self.relation_indices, device=matrix.device)
        same = matrix * (indices[:, None] == indices)
        by_label = torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0), same.sum(1)])
        right, present, predicted, either = by_label.new_zeros(4, len(self.relations)).index_add(1, indices, by_label)
        return right, present, predicted, either
