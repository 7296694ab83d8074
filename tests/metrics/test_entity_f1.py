"""Entities and their scores compared with seqeval, and with the tables of the conlleval script, copied here."""

import itertools

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from framework.metrics.entity_f1 import EntityCounts, EntitySpan, count_entities, entity_spans, overall

TYPES = ("person", "creative-work", "place")
# Results of conlleval's `startOfChunk` and `endOfChunk` for two prefixes of one type, for those of IOB1 and BIO;
# if types differ, a chunk ends after every tag but O, and one starts at every tag but O.
STARTS = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}
ENDS = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}


def random_tags(seed: int, prefixes: str, number: int = 200) -> list[list[str]]:
    """Returns sentences of tags in any order, most of which violate every scheme."""
    random = np.random.default_rng(seed)
    tags = ["O", "O", *(f"{prefix}-{label}" for prefix in prefixes for label in TYPES)]
    return [random.choice(tags, size=random.integers(1, 12)).tolist() for _ in range(number)]


def chunks_by_the_script(tags: list[str]) -> list[EntitySpan]:
    parts = [(tag.partition("-")[0], tag.partition("-")[2]) for tag in ["O", *tags, "O"]]
    chunks, start = [], None
    for index, ((before, type_before), (prefix, label)) in enumerate(itertools.pairwise(parts)):
        differs = type_before != label
        if (before, prefix) in ENDS or (before != "O" and differs):
            chunks.append(EntitySpan(start, index, type_before))
        if (prefix != "O" and differs) or (before, prefix) in STARTS:
            start = index
    return chunks


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-a I-a O B-b", [(0, 2, "a"), (3, 4, "b")]),
        ("O I-a I-a O", [(1, 3, "a")]),
        ("B-a B-a", [(0, 1, "a"), (1, 2, "a")]),
        ("B-a I-b I-b", [(0, 1, "a"), (1, 3, "b")]),
        ("I-a B-a I-a", [(0, 1, "a"), (1, 3, "a")]),
        ("B-a E-a S-a S-a I-a", [(0, 2, "a"), (2, 3, "a"), (3, 4, "a"), (4, 5, "a")]),
        ("B-big-a I-big-a I-a", [(0, 2, "big-a"), (2, 3, "a")]),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entity_spans(tags.split()) == expected


def test_tags_in_any_order_are_read_as_by_the_script():
    for tags in random_tags(0, "BI"):
        assert entity_spans(tags) == chunks_by_the_script(tags)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_tags_in_any_order_are_read_as_by_seqeval(prefixes):
    for tags in random_tags(1, prefixes):
        assert entity_spans(tags) == [(start, end + 1, label) for label, start, end in get_entities(tags)]


def test_scores_equal_those_of_seqeval():
    present = random_tags(2, "BI")
    random = np.random.default_rng(3)
    others = random_tags(4, "BI", 2000)
    predicted = [
        [tag if random.random() < 0.8 else others[index * 10][0] for tag in tags] for index, tags in enumerate(present)
    ]
    by_type = count_entities(present, predicted, TYPES)
    total = overall(by_type.values())
    assert total.precision == pytest.approx(precision_score(present, predicted), abs=1e-12)
    assert total.recall == pytest.approx(recall_score(present, predicted), abs=1e-12)
    assert total.f1 == pytest.approx(f1_score(present, predicted), abs=1e-12)
    by_label = dict(zip(sorted(TYPES), f1_score(present, predicted, average=None), strict=True))
    assert {label: counts.f1 for label, counts in by_type.items()} == pytest.approx(by_label, abs=1e-12)
    assert 0.2 < total.f1 < 0.9


def test_the_published_example_of_conlleval():
    """Output page of the script: 459 phrases; found: 539 phrases; correct: 371."""
    counts = EntityCounts(correct=371, predicted=539, present=459)
    assert [round(100 * value, 2) for value in (counts.precision, counts.recall, counts.f1)] == [68.83, 80.83, 74.35]


def test_no_entities_in_data_and_predictions_is_zero():
    counts = overall(count_entities([["O"]], [["O"]], TYPES).values())
    assert (counts.precision, counts.recall, counts.f1) == (0.0, 0.0, 0.0)
