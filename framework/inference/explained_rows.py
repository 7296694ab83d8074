"""Rows of `framework.explain`: words of the given texts with their scores, and a coloured text for terminals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from framework.data.tokenization.tokenizer import Tokenizer
from framework.modules.explanations.attribution import Attribution
from framework.modules.explanations.item_passes import word_indices
from framework.tasks.explanation import ExactExplanation, Explained, TokenSpans

_COLOURS = {True: (0, 150, 0), False: (200, 0, 0)}
"""Background of words that raise the score, and of words that lower it."""

NOTHING_EXPLAINED: dict[str, Any] = {
    "explained": None,
    "score": None,
    "baseline_score": None,
    "completeness_error": None,
    "words": [],
}
"""Keys of an output row without an explained score."""


def explanation(
    explained: Explained, attribution: Attribution, spans: TokenSpans, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns an explanation as JSON values.

    Args:
        explained: Explained score.
        attribution: Token scores of its item.
        spans: Spans of the tokens.
        tokenizer: Tokenizer of the model.

    Returns:
        `explained` (its name), the details of the score, `score`, `baseline_score`, `completeness_error` and `words`.
    """
    return {
        "explained": explained.name,
        **explained.details,
        "score": attribution.score,
        "baseline_score": attribution.baseline_score,
        "completeness_error": attribution.error,
        "words": scored_words(attribution, spans, tokenizer),
    }


def exact_explanation(exact: ExactExplanation, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns an explanation that a task states as JSON values, with the keys of `explanation`."""
    terms = Attribution(exact.input_ids, exact.token_scores, exact.score, 0.0, None)
    return {
        **NOTHING_EXPLAINED,
        "explained": "score",
        "score": exact.score,
        # Markers are in the details only.
        "words": [word for word in scored_words(terms, exact.spans, tokenizer) if word["start"] is not None],
        **exact.details,
    }


def scored_words(attribution: Attribution, spans: TokenSpans, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Returns the words that an explained score depends on, each with the sum of the scores of its tokens.

    Adjacent tokens with the same span are one word, such as the parts of `don't` where a task tags white-space words.
    A word that is in several windows of a text has the sum of its scores there.

    Args:
        attribution: Token scores of an item.
        spans: Spans of the tokens.
        tokenizer: Tokenizer of the model.

    Returns:
        For each word `text`, its offsets `start` (inclusive) and `end` (exclusive) in the text as given, and its
        `score`. With several texts also the `field`. Offsets count characters, or words if the row is a list of words.
        A word that no character of the texts corresponds to, such as the mark of an entity, has its normalised text,
        and null as `start` and `end`.
    """
    ids = attribution.input_ids
    rows: list[dict[str, Any]] = []
    for tokens in _words(word_indices(ids, tokenizer), spans):
        score = float(attribution.token_scores[tokens].sum())
        own = [span for token in tokens if (span := spans.spans.get(token)) is not None]
        field = own[0].field if own else None
        if field is None:
            rows.append({"text": tokenizer.decode_batch([ids[tokens].tolist()])[0], "start": None, "end": None})
        else:
            rows.append(_written(spans.texts[field], own[0].start, max(span.end for span in own)))
        rows[-1] |= {"score": score} if len(spans.texts) == 1 else {"field": field, "score": score}
    return _merged(rows, spans) if len(spans.texts) == 1 else rows


def _merged(rows: list[dict[str, Any]], spans: TokenSpans) -> list[dict[str, Any]]:
    """Merges words of one text that overlap, which only those of overlapping windows do."""
    (text,) = spans.texts.values()
    if not isinstance(text, str) or any(row["start"] is None for row in rows):
        return rows
    merged: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda each: each["start"]):
        last = merged[-1] if merged else None
        if last is None or row["start"] >= last["end"]:
            merged.append(row)
            continue
        end = max(last["end"], row["end"])
        score = last["score"] + row["score"]
        merged[-1] = {"text": text[last["start"] : end], "start": last["start"], "end": end, "score": score}
    return merged


def _words(words: np.ndarray, spans: TokenSpans) -> list[list[int]]:
    """Returns the tokens of each word."""
    groups: list[list[int]] = []
    for token in spans.tokens:
        if words[token] < 0:
            continue
        last = groups[-1][-1] if groups else None
        span = spans.spans.get(token)
        if last is not None and (words[last] == words[token] or (span and span == spans.spans.get(last))):
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def _written(text: str | Sequence[str], start: int, end: int) -> dict[str, Any]:
    """Returns a part of a text without leading space, or of a list of words, with its offsets."""
    if not isinstance(text, str):
        return {"text": " ".join(text[start:end]), "start": start, "end": end}
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return {"text": text[start:end], "start": start, "end": end}


def coloured(row: Mapping[str, Any], spans: TokenSpans | None) -> Text:
    """Returns an explanation for a terminal.

    Words that raise the score are green, and words that lower it are red. The strongest word has the full colour.

    Args:
        row: Prediction joined with an explanation.
        spans: Spans of its tokens; None if nothing is explained.
    """
    if spans is None:
        return Text(row.get("error") or "The model predicts nothing that could be explained.", style="bold")
    words = [word for word in row["words"] if word["start"] is not None]
    strongest = max((abs(word["score"]) for word in words), default=0.0) or 1.0
    baseline = "" if row["baseline_score"] is None else f", baseline {row['baseline_score']:.3f}"
    line = Text(f"{row['explained']}: score {row['score']:.3f}{baseline}", style="bold")
    for field, given in spans.texts.items():
        text = given if isinstance(given, str) else " ".join(given)
        position = 0
        line.append("\n")
        for word in (each for each in words if each.get("field", field) == field):
            line.append(text[position : word["start"]], style="not bold")
            line.append(text[word["start"] : word["end"]], style=_style(word["score"] / strongest))
            position = word["end"]
        line.append(text[position:], style="not bold")
    return line


def _style(share: float) -> str:
    """Returns the style of a word by its score relative to the strongest word."""
    strength = min(abs(share), 1.0)
    red, green, blue = (round(255 - (255 - value) * strength) for value in _COLOURS[share > 0])
    return f"not bold black on rgb({red},{green},{blue})"
