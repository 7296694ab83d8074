"""Rows of `framework.explain`: words of the given texts with their scores, and a coloured text for terminals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.text import Text

from framework.data.tokenization.tokenizer import Tokenizer
from framework.modules.attribution import Attribution
from framework.modules.item_passes import word_indices

_COLOURS = {True: (0, 150, 0), False: (200, 0, 0)}
"""Background of words that raise the score, and of words that lower it."""


def explanation(name: str, attribution: Attribution, texts: Mapping[str, str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns an explanation as JSON values.

    Args:
        name: Name of the explained score.
        attribution: Token scores of an item.
        texts: Texts of the row in the order of their tokens, by field.
        tokenizer: Tokenizer of the model.

    Returns:
        `explained`, its `score`, `baseline_score` `completeness_error` and `words`.
    """
    return {
        "explained": name,
        "score": attribution.score,
        "baseline_score": attribution.baseline_score,
        "completeness_error": attribution.error,
        "words": scored_words(attribution, texts, tokenizer),
    }


def scored_words(attribution: Attribution, texts: Mapping[str, str], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Returns the words of an item, each with the sum of the scores of its tokens.

    Args:
        attribution: Token scores of an item.
        texts: Texts of the row in the order of their tokens, by field.
        tokenizer: Tokenizer of the model.

    Returns:
        For each word `text`, its characters `start` (inclusive) and `end` (exclusive) in the text as given, and its
        `score`. With several texts also the `field`. A token that no character of the texts corresponds to, such as the
        mark of an entity, has its normalised text, and null as `start` and `end`.
    """
    ids = attribution.input_ids
    words = word_indices(ids, tokenizer)
    located = _located(ids, words, texts, tokenizer)
    rows: list[dict[str, Any]] = []
    for word in range(words.max(initial=-1) + 1):
        tokens = np.flatnonzero(words == word)
        score = float(attribution.token_scores[tokens].sum())
        spans = [located[token] for token in tokens.tolist() if token in located]
        if not spans:
            rows.append({"text": tokenizer.decode_batch([ids[tokens].tolist()])[0], "start": None, "end": None})
            field = None
        else:
            field = spans[0][0]
            start, end = spans[0][1], max(span[2] for span in spans)
            text = texts[field][start:end]
            start += len(text) - len(text.lstrip())
            rows.append({"text": texts[field][start:end], "start": start, "end": end})
        rows[-1] |= {"score": score} if len(texts) == 1 else {"field": field, "score": score}
    return rows


def _located(
    ids: np.ndarray, words: np.ndarray, texts: Mapping[str, str], tokenizer: Tokenizer
) -> dict[int, tuple[str, int, int]]:
    """Returns the field, start and end of each token that stems from one of the texts."""
    real = np.flatnonzero((words >= 0) & ~np.isin(ids, tokenizer.placeholder_ids))
    gaps = np.flatnonzero(np.diff(real) > 1) + 1 if len(texts) > 1 else real[:0]
    parts = iter(np.split(real, gaps))
    located: dict[int, tuple[str, int, int]] = {}
    for field, (own, starts, ends) in zip(texts, tokenizer.encode_with_offsets(list(texts.values())), strict=True):
        if not len(own):
            continue
        part = next(parts, real[:0])
        offset = _find(own, ids[part])
        if offset is not None:
            span = slice(offset, offset + len(part))
            located |= {
                token: (field, start, end)
                for token, start, end in zip(part.tolist(), starts[span].tolist(), ends[span].tolist(), strict=True)
            }
    return located


def _find(ids: np.ndarray, part: np.ndarray) -> int | None:
    """Returns the first offset at which the ids of a text contain a part of them; None if they do not."""
    if not 0 < len(part) <= len(ids):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(part))
    matches = np.flatnonzero((windows == part).all(axis=1))
    return int(matches[0]) if len(matches) else None


def coloured(row: Mapping[str, Any], texts: Mapping[str, str]) -> Text:
    """Returns an explanation for a terminal.

    Words that raise the score are green, and words that lower it are red. The strongest word has the full colour.

    Args:
        row: Prediction joined with an explanation.
        texts: Texts of the row by field.
    """
    words = [word for word in row["words"] if word["start"] is not None]
    strongest = max((abs(word["score"]) for word in words), default=0.0) or 1.0
    line = Text(f"{row['explained']}: score {row['score']:.3f}, baseline {row['baseline_score']:.3f}", style="bold")
    for field, text in texts.items():
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
