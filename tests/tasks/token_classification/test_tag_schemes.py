"""Tag schemes compared with entities written in each of them: all layouts of entities on few words."""

import itertools

import pytest

from framework.metrics.entity_f1 import EntitySpan, entity_spans
from framework.tasks.token_classification.tag_schemes import bio_tags, detect_scheme, first_violation, is_tag

SCHEMES = ("iob1", "bio", "bioes")
TYPES = ("x", "y")


def layouts(num_words: int) -> list[list[EntitySpan]]:
    """Returns every set of entities that do not overlap."""
    if num_words == 0:
        return [[]]
    all_layouts = [list(spans) for spans in layouts(num_words - 1)]
    for start in range(num_words):
        for label in TYPES:
            all_layouts += [[*spans, EntitySpan(start, num_words, label)] for spans in layouts(start)]
    return all_layouts


def written(spans: list[EntitySpan], num_words: int, scheme: str) -> tuple[str, ...]:
    tags = ["O"] * num_words
    for start, stop, label in spans:
        follows = any(other.stop == start and other.label == label for other in spans)
        for position in range(start, stop):
            first, last = position == start, position == stop - 1
            prefix = {
                "iob1": "B" if first and follows else "I",
                "bio": "B" if first else "I",
                "bioes": "S" if first and last else "B" if first else "E" if last else "I",
            }[scheme]
            tags[position] = f"{prefix}-{label}"
    return tuple(tags)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_allows_exactly_the_spellings_of_entities(scheme):
    prefixes = "BIES" if scheme == "bioes" else "BI"
    alphabet = ["O", *(f"{prefix}-{label}" for prefix in prefixes for label in TYPES)]
    for num_words in range(4):
        legal = {written(spans, num_words, scheme) for spans in layouts(num_words)}
        actual = {
            tags for tags in itertools.product(alphabet, repeat=num_words) if first_violation(tags, scheme) is None
        }
        assert actual == legal


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_becomes_bio(scheme):
    for spans in layouts(5):
        tags = bio_tags(written(spans, 5, scheme))
        assert tags == written(spans, 5, "bio")
        assert entity_spans(tags) == spans


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_of_a_file_is_detected(scheme):
    sentences = [written(spans, 3, scheme) for spans in layouts(3)]
    assert detect_scheme(sentences) == scheme


def test_one_wrong_sentence_does_not_change_the_scheme():
    assert detect_scheme([("B-x", "O"), ("B-x", "I-x"), ("O", "I-x")]) == "bio"
    assert detect_scheme([("I-x", "O"), ("I-x", "B-x"), ("O", "B-x")]) == "iob1"
    assert detect_scheme([("B-x", "O"), ("O", "I-x")]) == detect_scheme([("O",)]) == "bio"


@pytest.mark.parametrize(
    ("tags", "scheme", "position"),
    [
        ("B-x O I-x", "bio", 2),
        ("B-x I-y", "bio", 1),
        ("B-x S-x", "bio", 1),
        ("I-x O B-x", "iob1", 2),
        ("I-x B-y", "iob1", 1),
        ("B-x I-x", "bioes", 2),
        ("B-x O", "bioes", 1),
        ("S-x E-x", "bioes", 1),
    ],
)
def test_the_position_of_a_violation(tags, scheme, position):
    assert first_violation(tags.split(), scheme) == position


def test_valid_tags():
    assert all(map(is_tag, ["O", "B-x", "I-creative-work", "E-人", "S-a b"]))
    assert not any(map(is_tag, ["", "o", "B", "B-", "x", "L-x", "OO", "-x"]))
