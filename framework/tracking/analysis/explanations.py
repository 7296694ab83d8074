"""Converts the explanations of a split to values for its analysis, under the optional key `explanations`.

Keys: `omitted` (the reason for which there are none) or `steps`, `error`, `rows`, `examples`, `labels` (number of names
of scores), `words`, `faithfulness`, `attention`. Without texts in the report `examples` and `words` are empty, and
`attention` is null.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.explained_split import AttentionHeads, Faithfulness, RowExplanation, SplitExplanations

EXPLANATIONS = "explanations"
"""Key in an analysis."""

MOST_WORDS = 20
_DECIMALS = 4
_FEWEST_ROWS = 2
"""Rows in which a word must occur to be listed, unless no word of its class does. A word of one row is no pattern."""

_MOST_TOKENS = 24
"""Tokens whose attention is kept. Names of more tokens could not be read in a picture."""


def explanation_values(
    explanations: SplitExplanations | str,
    examples: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    shows_texts: bool,
) -> dict[str, Any]:
    """Returns explanations as values for JSON.

    Args:
        explanations: Explanations of the split, or the reason for which there are none.
        examples: Worst examples in the analysis of the split; empty if the report shows no texts.
        tokenizer: Tokenizer of the model.
        shows_texts: True if the report shows texts, and so words.
    """
    if isinstance(explanations, str):
        return {"omitted": explanations}
    attention, faithfulness = explanations.attention, explanations.faithfulness
    return {
        "steps": explanations.steps,
        "error": _rounded(explanations.error),
        "rows": explanations.num_rows,
        "examples": [
            None if each is None else _coloured(each, example["text"], tokenizer)
            for each, example in zip(explanations.shown, examples, strict=True)
        ],
        "labels": len(explanations.labels),
        "words": words_that_decide(_named(explanations), tokenizer) if shows_texts else {},
        "faithfulness": None if faithfulness is None else _faithfulness(faithfulness),
        "attention": None if attention is None else _attention(attention, tokenizer),
    }


def words_that_decide(explanations: Sequence[RowExplanation], tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Returns the words with the largest mean scores for each name of a score.

    The score of a word in a row is the sum over its occurrences. Words are those that the tokenizer reads, so an
    uncased model has one word for `Good` and `good`.

    Returns:
        By name: `rows`, the number of explained rows, and the lists `raise` and `lower` of (word, mean score over the
        rows that contain it, number of these rows).
    """
    by_name: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, int] = {}
    for each in explanations:
        rows[each.name] = rows.get(each.name, 0) + 1
        found: dict[str, float] = {}
        for tokens in each.word_tokens:
            word = tokenizer.decode_batch([each.input_ids[tokens].tolist()])[0].strip()
            if word:
                found[word] = found.get(word, 0.0) + float(each.token_scores[tokens].sum())
        scores = by_name.setdefault(each.name, {})
        for word, score in found.items():
            scores.setdefault(word, []).append(score)
    tables = {}
    for name, scores in by_name.items():
        fewest = _FEWEST_ROWS if any(len(own) >= _FEWEST_ROWS for own in scores.values()) else 1
        means = [(word, _rounded(float(np.mean(own))), len(own)) for word, own in scores.items() if len(own) >= fewest]
        means.sort(key=lambda row: (-row[1], row[0]))
        tables[name] = {
            "rows": rows[name],
            "raise": [list(row) for row in means if row[1] > 0][:MOST_WORDS],
            "lower": [list(row) for row in means[::-1] if row[1] < 0][:MOST_WORDS],
        }
    return tables


def decode_attention(attention: Mapping[str, Any]) -> list[np.ndarray]:
    """Returns (heads, tokens, tokens) float64 in [0, 1] for each layer of `attention`."""
    size = len(attention["tokens"])
    layers = [np.frombuffer(base64.b64decode(each), dtype=np.uint8) for each in attention["layers"]]
    return [each.reshape(-1, size, size) / 255 for each in layers]


def located_words(explanation: RowExplanation, text: str, tokenizer: Tokenizer) -> list[tuple[int, int, float]]:
    """Finds the words of an explanation in a text that contains the row, such as a pair on two lines.

    Args:
        explanation: Words with their scores.
        text: Text that may also contain other characters, and may be truncated.
        tokenizer: Tokenizer of the model.

    Returns:
        Start, end and score of each word that the text contains, ascending.
    """
    ((ids, starts, ends),) = tokenizer.encode_with_offsets([text])
    real = np.flatnonzero(explanation.words >= 0)
    matcher = SequenceMatcher(None, explanation.input_ids[real].tolist(), ids.tolist(), autojunk=False)
    place = {
        int(real[block.a + index]): (int(starts[block.b + index]), int(ends[block.b + index]))
        for block in matcher.get_matching_blocks()
        for index in range(block.size)
    }
    found: list[tuple[int, int, float]] = []
    for tokens in explanation.word_tokens:
        spans = [place[token] for token in tokens.tolist() if token in place]
        if not spans:
            continue
        start, end = spans[0][0], spans[-1][1]
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start < end and (not found or start >= found[-1][1]):
            found.append((start, end, float(explanation.token_scores[tokens].sum())))
    return found


def _named(explanations: SplitExplanations) -> list[RowExplanation]:
    """Returns the explanations of scores that other rows have too. An answer of a question is no such score."""
    return [each for each in explanations.sampled if each.name in set(explanations.labels)]


def _coloured(explanation: RowExplanation, text: str, tokenizer: Tokenizer) -> dict[str, Any]:
    words = located_words(explanation, text, tokenizer)
    return {
        "explained": explanation.name,
        "score": _rounded(explanation.score),
        "baseline_score": _rounded(explanation.baseline_score),
        "words": [[start, end, _rounded(score)] for start, end, score in words],
    }


def _faithfulness(measured: Faithfulness) -> dict[str, Any]:
    """Returns means and standard errors over rows; `gain` is comprehensiveness minus that of a random order."""
    columns = {
        "comprehensiveness": measured.comprehensiveness,
        "random_comprehensiveness": measured.random_comprehensiveness,
        "sufficiency": measured.sufficiency,
        "random_sufficiency": measured.random_sufficiency,
    }
    # The mean over fractions is that of ERASER's area over the perturbation curve.
    gains = (measured.comprehensiveness - measured.random_comprehensiveness).mean(axis=1)
    return {
        "value": measured.value,
        "rows": len(gains),
        "fractions": list(measured.fractions),
        **{name: [_mean(column) for column in values.T] for name, values in columns.items()},
        "gain": _mean(gains),
    }


def _mean(values: np.ndarray) -> list[float | None]:
    """Returns the mean and its standard error; None for a single value."""
    error = _rounded(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return [_rounded(values.mean()), error]


def _attention(attention: AttentionHeads, tokenizer: Tokenizer) -> dict[str, Any]:
    size = min(len(attention.input_ids), _MOST_TOKENS)
    names = []
    for token in attention.input_ids[:size].tolist():
        name = tokenizer.decode_batch([[token]])[0].strip() or tokenizer.backend.id_to_token(token)
        names.append(name if tokenizer.starts_word[token] else f"·{name}")
    layers = [np.round(255 * np.clip(each[:, :size, :size], 0, 1)).astype(np.uint8) for each in attention.layers]
    return {
        "row": attention.row,
        "length": len(attention.input_ids),
        "tokens": names,
        "layers": [base64.b64encode(np.ascontiguousarray(each).tobytes()).decode("ascii") for each in layers],
    }


def _rounded(value: float) -> float:
    return round(float(value), _DECIMALS)
