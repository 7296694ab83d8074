"""Macro F1 of relations, as the scorer of SemEval-2010 task 8 counts its official result.

Hendrickx et al. 2010 ("SemEval-2010 Task 8: Multi-Way Classification of Semantic Relations Between Pairs of Nominals",
section 5) and semeval2010_task8_scorer-v1.2.pl, "(9+1)-way evaluation taking directionality into account": the two
directions of a relation are one class, in which a prediction of the wrong direction counts as predicted, but not as
right. The mean is over the relations that the data have, without "Other".
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framework.metrics.classification import ConfusionMetric

_DIRECTION = re.compile(r"\((e1,e2|e2,e1)\)$")


def relation_of(label: str) -> str:
    """The label without its direction: `Cause-Effect` of `Cause-Effect(e2,e1)`."""
    return _DIRECTION.sub("", label)


class RelationF1(ConfusionMetric):
    """Mean over relations of F1, in which both directions of a relation are counted together.

    For a relation, P = right / predicted and R = right / present, where only the right direction is right, and what is
    predicted or present is so in either; F1 is 0 where nothing is right. Labels without a direction are relations of
    their own: then this is the macro F1 of the labels that the data have.

    Args:
        labels: Names in the order of scores.
        excluded_label: Counts as no relation, but what is predicted wrongly for it still costs precision; None: all do.

    Attributes:
        relations: Names without direction, in the order of their first labels, the excluded one among them.
    """

    def __init__(self, labels: Sequence[str], excluded_label: str | None = "Other") -> None:
        super().__init__(len(labels))
        self.relations = tuple(dict.fromkeys(relation_of(label) for label in labels))
        self.relation_places = [self.relations.index(relation_of(label)) for label in labels]
        self.counted = [relation != excluded_label for relation in self.relations]

    def value(self, matrix: Tensor) -> Tensor:
        """Macro F1 in [0, 1]; 0 where the data have no relation."""
        right, present, predicted, _ = self._counts(matrix)
        scores = 2 * right / (present + predicted).clamp(min=1)
        counted = torch.tensor(self.counted, device=matrix.device) & (present > 0)
        return torch.where(counted, scores, 0.0).sum() / counted.sum().clamp(min=1)

    def rows(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 of each relation, and how often only its direction is wrong; after `compute`."""
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
        """Of each relation: right, present, predicted, and predicted where it is present in any direction."""
        places = torch.tensor(self.relation_places, device=matrix.device)
        same = matrix * (places[:, None] == places)
        by_label = torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0), same.sum(1)])
        right, present, predicted, either = by_label.new_zeros(4, len(self.relations)).index_add(1, places, by_label)
        return right, present, predicted, either
