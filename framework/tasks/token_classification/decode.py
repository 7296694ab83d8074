"""Decoding of word scores to tags and entities: the best tag sequence that BIO allows (Viterbi 1967)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from framework import ragged
from framework.metrics.entity_f1 import entity_spans
from framework.tasks.token_classification.features import Example, Part

_SENTENCES_AT_ONCE = 1024


def bio_tag_set(types: Sequence[str]) -> tuple[str, ...]:
    """Returns the tag set of these entity types, in the order of scores: O, then B- and I- of each type."""
    return ("O", *(f"{prefix}-{each}" for each in types for prefix in "BI"))


def bio_transitions(tags: Sequence[str]) -> np.ndarray:
    """Returns the transitions that BIO allows: I- follows only B- or I- of the same type.

    The tags that may follow O may also begin a sentence.

    Args:
        tags: Tag set, with O first.

    Returns:
        (labels, labels) bool: element [a, b] is True if tag b may follow tag a.
    """
    allowed = np.ones((len(tags), len(tags)), dtype=bool)
    for index, tag in enumerate(tags):
        if tag.startswith("I-"):
            allowed[:, index] = [before != "O" and before[2:] == tag[2:] for before in tags]
    return allowed


def best_paths(scores: np.ndarray, lengths: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Returns the allowed tag sequence with the largest sum of scores, for each sentence.

    Args:
        scores: (words, labels) log-probabilities, with the sentences concatenated.
        lengths: (sentences,) number of words of each sentence; may be 0.
        allowed: (labels, labels) bool from `bio_transitions`. Labels that may follow label 0 may begin a sentence.

    Returns:
        (words,) int64 labels. Ties: the sequence with the smaller labels at its end wins.
    """
    paths = np.zeros(len(scores), dtype=np.int64)
    starts = ragged.starts(lengths)
    # Sort by length, longest first, so that the sentences with a word at an index are always the first ones.
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), _SENTENCES_AT_ONCE):
        some = order[first : first + _SENTENCES_AT_ONCE]
        _fill_paths(paths, scores, starts[some], lengths[some], np.where(allowed, 0.0, -np.inf))
    return paths


def _fill_paths(
    paths: np.ndarray, scores: np.ndarray, starts: np.ndarray, lengths: np.ndarray, penalties: np.ndarray
) -> None:
    """Writes the paths of sentences that are sorted by length, longest first."""
    longest = int(lengths.max(initial=0))
    reaching = [int(np.searchsorted(-lengths, -index)) for index in range(longest)]
    totals = np.zeros((len(lengths), scores.shape[1]))
    previous_tags = []
    for index, number in enumerate(reaching):
        word_scores = scores[starts[:number] + index]
        if index == 0:
            totals[:number] = penalties[0] + word_scores
            continue
        candidates = totals[:number, :, None] + penalties
        previous_tags.append(candidates.argmax(axis=1))
        totals[:number] = candidates.max(axis=1) + word_scores
    tags = totals.argmax(axis=1)
    for index in range(longest - 1, -1, -1):
        number = reaching[index]
        paths[starts[:number] + index] = tags[:number]
        if index > 0:
            tags[:number] = np.take_along_axis(previous_tags[index - 1], tags[:number, None], axis=1)[:, 0]


def join_parts(parts: Sequence[Part], scores: Sequence[np.ndarray]) -> tuple[list[Example], list[np.ndarray]]:
    """Returns the examples in order, and the scores of the words of each, concatenated over its windows.

    Args:
        parts: Records of a source, in the order of the source.
        scores: (words, labels) scores per part, for the words that the part predicts.
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
    """Returns the best tag sequence of each example.

    Args:
        scores: (words, labels) log-probabilities per example.
        tags: Tag set in the order of scores.

    Returns:
        (words,) int64 indices into the tag set, per example.
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
        path: (words,) indices into the tag set.
        tags: Tag set in the order of scores.
        join: Function that joins the words of an entity if there is no text.

    Returns:
        Per entity: `start` and exclusive `end` (code points of the text, or words if there is no text), `label`,
        `probability` (the mean probability of the predicted tags of its words), and `text`.
    """
    probabilities = np.exp(scores[np.arange(len(path)), path])
    entities = []
    for start, end, label in entity_spans([tags[index] for index in path]):
        entity = {"start": start, "end": end, "label": label, "probability": float(probabilities[start:end].mean())}
        if example.text is None:
            entities.append(entity | {"text": join(example.words[start:end])})
        else:
            first, stop = example.units[start].start, example.units[end - 1].stop
            entities.append(entity | {"start": first, "end": stop, "text": example.text[first:stop]})
    return entities
