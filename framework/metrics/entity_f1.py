"""Entities of tag sequences, and how many were found: the rules of conlleval, the script of the CoNLL shared tasks.

An entity counts as right where its first word, its last word and its type are right (Tjong Kim Sang and Buchholz 2000,
"Introduction to the CoNLL-2000 Shared Task: Chunking", section 4). The share of words whose tag is right is another
number, and much higher.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class EntitySpan(NamedTuple):
    """Words of a sentence that are one entity.

    Attributes:
        start: The first word.
        stop: The word behind the last one.
        label: The type.
    """

    start: int
    stop: int
    label: str


def entity_spans(tags: Sequence[str]) -> list[EntitySpan]:
    """Reads entities as conlleval does, whatever the scheme, and where tags are against it too.

    An entity goes on only with I- or E- behind B- or I- of the same type; every other tag but O begins one, so I-
    behind O or behind another type does too. S- and E- close their entity, as in seqeval.

    Args:
        tags: (words,) of one sentence, `O` or `PREFIX-TYPE`.

    Returns:
        In the order of the sentence.
    """
    spans: list[EntitySpan] = []
    start = -1
    previous, label_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-")
        goes_on = prefix in ("I", "E") and previous in ("B", "I") and label == label_before
        if start >= 0 and not goes_on:
            spans.append(EntitySpan(start, place, label_before))
            start = -1
        if prefix != "O" and not goes_on:
            start = place
        previous, label_before = prefix, label
    return spans


@dataclass(frozen=True, slots=True)
class EntityCounts:
    """How many entities there are; a quotient without denominator is 0.

    Attributes:
        correct: Predicted where they are.
        predicted: Predicted at all.
        present: In the data.
    """

    correct: int
    predicted: int
    present: int

    @property
    def precision(self) -> float:
        """Share of the predicted ones that are right."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of those in the data that were predicted."""
        return self.correct / self.present if self.present else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.predicted + self.present
        return 2 * self.correct / total if total else 0.0


def count_entities(
    present: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], labels: Sequence[str]
) -> dict[str, EntityCounts]:
    """Counts entities by type; sums over types, and over parts of a split, are those of the whole.

    Args:
        present: Tags of each sentence in the data.
        predicted: Tags that were predicted for it.
        labels: The types to count.
    """
    correct: Counter[str] = Counter()
    found: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for true_tags, tags in zip(present, predicted, strict=True):
        true_spans, spans = entity_spans(true_tags), entity_spans(tags)
        there.update(span.label for span in true_spans)
        found.update(span.label for span in spans)
        correct.update(span.label for span in set(true_spans).intersection(spans))
    return {label: EntityCounts(correct[label], found[label], there[label]) for label in labels}


def overall(by_label: Iterable[EntityCounts]) -> EntityCounts:
    """All types as one, so that its F1 is the micro average that conlleval prints first."""
    counts = list(by_label)
    return EntityCounts(
        sum(each.correct for each in counts),
        sum(each.predicted for each in counts),
        sum(each.present for each in counts),
    )
