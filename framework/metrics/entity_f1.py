"""Reads entities from tags, and scores them as conlleval does, the script of the CoNLL shared tasks.

An entity is correct if its first word, its last word and its type are correct (Tjong Kim Sang and Buchholz 2000,
"Introduction to the CoNLL-2000 Shared Task: Chunking", section 4). Token accuracy is another number, and much higher.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from framework.metrics.row_ratio import RowRatio


class EntitySpan(NamedTuple):
    """Words of a sentence that form an entity.

    Attributes:
        start: Index of the first word.
        stop: Index after the last word.
        label: Type of the entity.
    """

    start: int
    stop: int
    label: str


def entity_spans(tags: Sequence[str]) -> list[EntitySpan]:
    """Reads entities as conlleval does, for any scheme and for invalid tags.

    Only I- or E- after B- or I- of the same type continues an entity. Every other tag except O begins one, also I-
    after O or after another type. S- and E- end their entity, as in seqeval.

    Args:
        tags: (words,) of one sentence, `O` or `PREFIX-TYPE`.

    Returns:
        Entities in the order of the sentence.
    """
    spans: list[EntitySpan] = []
    start = -1
    previous, label_before = "O", ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-")
        continues = prefix in ("I", "E") and previous in ("B", "I") and label == label_before
        if start >= 0 and not continues:
            spans.append(EntitySpan(start, index, label_before))
            start = -1
        if prefix != "O" and not continues:
            start = index
        previous, label_before = prefix, label
    return spans


@dataclass(frozen=True, slots=True)
class EntityCounts:
    """Counts of entities. Ratios with a zero denominator are 0.

    Attributes:
        correct: Number of correctly predicted entities.
        predicted: Number of predicted entities.
        present: Number of entities in the data.
    """

    correct: int
    predicted: int
    present: int

    @property
    def precision(self) -> float:
        """Share of predicted entities that are correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of entities in the data that are predicted."""
        return self.correct / self.present if self.present else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.predicted + self.present
        return 2 * self.correct / total if total else 0.0


def count_entities(
    present: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], labels: Sequence[str]
) -> dict[str, EntityCounts]:
    """Counts entities by type. Counts of types and of parts of a split can be added.

    Args:
        present: Tags of each sentence in the data.
        predicted: Predicted tags of each sentence.
        labels: Types to count.
    """
    correct: Counter[str] = Counter()
    predicted_by_type: Counter[str] = Counter()
    present_by_type: Counter[str] = Counter()
    for true_tags, tags in zip(present, predicted, strict=True):
        true_spans, spans = entity_spans(true_tags), entity_spans(tags)
        present_by_type.update(span.label for span in true_spans)
        predicted_by_type.update(span.label for span in spans)
        correct.update(span.label for span in set(true_spans).intersection(spans))
    return {label: EntityCounts(correct[label], predicted_by_type[label], present_by_type[label]) for label in labels}


def entity_ratios(present: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, RowRatio]:
    """Counts the entities of all types in each sentence.

    Args:
        present: Tags of each sentence in the data.
        predicted: Predicted tags of each sentence.

    Returns:
        `precision`, `recall` and `f1`, the micro averages of `overall`.
    """
    counts = []
    for true_tags, tags in zip(present, predicted, strict=True):
        true_spans, spans = set(entity_spans(true_tags)), set(entity_spans(tags))
        counts.append((len(true_spans & spans), len(spans), len(true_spans)))
    correct, num_predicted, num_present = np.array(counts, dtype=np.float64).reshape(-1, 3).T
    return {
        "precision": RowRatio(correct, num_predicted),
        "recall": RowRatio(correct, num_present),
        "f1": RowRatio(2 * correct, num_predicted + num_present),
    }


def overall(by_label: Iterable[EntityCounts]) -> EntityCounts:
    """Adds the counts of all types. Their F1 is the micro average that conlleval prints first."""
    counts = list(by_label)
    return EntityCounts(
        sum(each.correct for each in counts),
        sum(each.predicted for each in counts),
        sum(each.present for each in counts),
    )
