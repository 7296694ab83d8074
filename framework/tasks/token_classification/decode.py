"""From scores of words to tags and entities: the best sequence of tags that BIO allows (Viterbi 1967)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from framework import ragged
from framework.metrics.entity_f1 import entity_spans
from framework.tasks.token_classification.features import Example, Part

_SENTENCES_AT_ONCE = 1024


def bio_tag_set(types: Sequence[str]) -> tuple[str, ...]:
    """The tags of entities of these types, in the order of scores: O, then B- and I- of each type."""
    return ("O", *(f"{prefix}-{each}" for each in types for prefix in "BI"))


def bio_transitions(tags: Sequence[str]) -> np.ndarray:
    """Which tag may follow which: I- only B- and I- of its type; at the start of a sentence what may follow O.

    Args:
        tags: The tag set; O is the first.

    Returns:
        (labels, labels) bool, the earlier tag first.
    """
    allowed = np.ones((len(tags), len(tags)), dtype=bool)
    for place, tag in enumerate(tags):
        if tag.startswith("I-"):
            allowed[:, place] = [before != "O" and before[2:] == tag[2:] for before in tags]
    return allowed


def best_paths(scores: np.ndarray, lengths: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed sequence of tags with the largest sum of scores, for each sentence.

    Args:
        scores: (words, labels), log-probabilities, sentences end to end.
        lengths: (sentences,) words of each, 0 too.
        allowed: (labels, labels) of `bio_transitions`; what may follow label 0 may begin a sentence.

    Returns:
        (words,) int64 labels; of equal sums the one with the smaller labels at the end.
    """
    paths = np.zeros(len(scores), dtype=np.int64)
    starts = ragged.starts(lengths)
    # The longest first, so that at each place the sentences that reach it are the first ones.
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), _SENTENCES_AT_ONCE):
        some = order[first : first + _SENTENCES_AT_ONCE]
        _fill_paths(paths, scores, starts[some], lengths[some], np.where(allowed, 0.0, -np.inf))
    return paths


def _fill_paths(
    paths: np.ndarray, scores: np.ndarray, starts: np.ndarray, lengths: np.ndarray, penalties: np.ndarray
) -> None:
    """Writes the paths of sentences that are sorted by length, the longest first."""
    longest = int(lengths.max(initial=0))
    reaching = [int(np.searchsorted(-lengths, -place)) for place in range(longest)]
    totals = np.zeros((len(lengths), scores.shape[1]))
    came_from = []
    for place, number in enumerate(reaching):
        here = scores[starts[:number] + place]
        if place == 0:
            totals[:number] = penalties[0] + here
            continue
        candidates = totals[:number, :, None] + penalties
        came_from.append(candidates.argmax(axis=1))
        totals[:number] = candidates.max(axis=1) + here
    tags = totals.argmax(axis=1)
    for place in range(longest - 1, -1, -1):
        number = reaching[place]
        paths[starts[:number] + place] = tags[:number]
        if place > 0:
            tags[:number] = np.take_along_axis(came_from[place - 1], tags[:number, None], axis=1)[:, 0]


def join_parts(parts: Sequence[Part], scores: Sequence[np.ndarray]) -> tuple[list[Example], list[np.ndarray]]:
    """The examples in their order, and for each the scores of its words: those of its windows end to end.

    Args:
        parts: Records of a source, in its order.
        scores: For each the (words, labels) of the words that it predicts.
    """
    examples: list[Example] = []
    pieces: list[list[np.ndarray]] = []
    for part, piece in zip(parts, scores, strict=True):
        if part.row == len(examples):
            examples.append(part.example)
            pieces.append([])
        pieces[part.row].append(piece)
    return examples, [np.concatenate(each) for each in pieces]


def predict_tags(scores: Sequence[np.ndarray], tags: Sequence[str]) -> list[np.ndarray]:
    """The best path of each example.

    Args:
        scores: (words, labels) log-probabilities of each.
        tags: The tag set in the order of scores.

    Returns:
        (words,) int64 places in the tag set, for each.
    """
    lengths = np.array([len(each) for each in scores], dtype=np.int64)
    paths = best_paths(np.concatenate([np.zeros((0, len(tags))), *scores]), lengths, bio_transitions(tags))
    return np.split(paths, np.cumsum(lengths))[:-1]


def entities_of(
    example: Example, scores: np.ndarray, path: np.ndarray, tags: Sequence[str], join: Callable[[Sequence[str]], str]
) -> list[dict[str, Any]]:
    """Returns the entities of a text, or of a list of words.

    Args:
        example: Example; its text may be None.
        scores: (words, labels) log-probabilities.
        path: (words,) places in the tag set.
        tags: The tag set in the order of scores.
        join: Function that joins the words of an entity if there is no text.

    Returns:
        For each entity `start` and exclusive `end` (code points of the text, or words if there is no text),
        `label`, its `probability` (the mean of its words' probabilities of their predicted tags), and `text`.
    """
    probabilities = np.exp(scores[np.arange(len(path)), path])
    entities = []
    for start, end, label in entity_spans([tags[place] for place in path]):
        entity = {"start": start, "end": end, "label": label, "probability": float(probabilities[start:end].mean())}
        if example.text is None:
            entities.append(entity | {"text": join(example.words[start:end])})
        else:
            first, behind = example.units[start].start, example.units[end - 1].stop
            entities.append(entity | {"start": first, "end": behind, "text": example.text[first:behind]})
    return entities
