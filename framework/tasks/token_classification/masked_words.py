"""Masks personal data in tagged words: a find becomes one word, and its entity contains all of it."""

from collections.abc import Sequence

from framework.data.personal_data.masking import MaskedText, TextMasking
from framework.data.tokenization.written_text import join_words
from framework.metrics.entity_f1 import entity_spans

Words = tuple[tuple[str, ...], tuple[str, ...]]
"""Words of a sentence, and their tags in BIO."""


def mask_words(words: Sequence[str], tags: Sequence[str], masking: TextMasking, text: str | None) -> Words:
    """Replaces each find by one word, the mask, together with characters of its words before and after the find.

    The mask belongs to the entity with the most characters in the find, and to no entity if none overlaps it. Other
    entities keep their words outside of the mask, and begin anew after it.

    Args:
        words: Words of a sentence, in the order of the text.
        tags: (words,) tags in BIO.
        masking: Masking of the text.
        text: Text of the words, which also contains white space; None: the words are joined to a text.

    Returns:
        Words and tags of the masked sentence.
    """
    text = _joined(words) if text is None else text
    masked = masking.mask(text)
    if not masked.finds:
        return tuple(words), tuple(tags)
    spans = _word_spans(words, text)
    entity_of = [-1] * len(words)
    entities = entity_spans(tags)
    for number, (start, stop, _) in enumerate(entities):
        entity_of[start:stop] = [number] * (stop - start)
    new_words: list[str] = []
    new_entities: list[int] = []
    done = 0
    for first, stop in _word_ranges(spans, masked):
        new_words += words[done:first]
        new_entities += entity_of[done:first]
        start, end = masked.moved(spans[first][0], spans[stop - 1][1])
        new_words.append(masked.text[start:end])
        new_entities.append(_chosen(range(first, stop), entity_of, spans, masked))
        done = stop
    new_words += words[done:]
    new_entities += entity_of[done:]
    new_tags = [
        "O" if number < 0 else f"{'I' if number == before else 'B'}-{entities[number].label}"
        for before, number in zip([-1, *new_entities], new_entities, strict=False)
    ]
    return tuple(new_words), tuple(new_tags)


def _joined(words: Sequence[str]) -> str:
    # A sentence of single characters was split at each of them, also within numbers and Latin words.
    return "".join(words) if max(map(len, words)) == 1 else join_words(words)


def _word_spans(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    spans, end = [], 0
    for word in words:
        start = text.index(word, end)
        end = start + len(word)
        spans.append((start, end))
    return spans


def _word_ranges(spans: Sequence[tuple[int, int]], masked: MaskedText) -> list[tuple[int, int]]:
    """Returns (first, stop) of the words of each find; finds that share a word have one range."""
    ranges: list[tuple[int, int]] = []
    for find in masked.finds:
        covered = [index for index, (start, end) in enumerate(spans) if start < find.end and find.start < end]
        first, stop = covered[0], covered[-1] + 1
        if ranges and first < ranges[-1][1]:
            first = ranges.pop()[0]
        ranges.append((first, stop))
    return ranges


def _chosen(words: range, entity_of: Sequence[int], spans: Sequence[tuple[int, int]], masked: MaskedText) -> int:
    """Returns the entity with the most characters in finds within these words, the first of equals; -1: none."""
    shares: dict[int, int] = {}
    for index in words:
        start, end = spans[index]
        covered = sum(max(0, min(end, find.end) - max(start, find.start)) for find in masked.finds)
        if entity_of[index] >= 0 and covered:
            shares[entity_of[index]] = shares.get(entity_of[index], 0) + covered
    return max(shares, key=lambda number: shares[number], default=-1)
