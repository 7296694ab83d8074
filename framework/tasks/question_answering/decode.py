"""From scores of tokens to answers: the best spans of each window, and of all windows of a question (NumPy, host).

After Devlin et al. 2019 (arXiv:1810.04805, sections 4.2 and 4.3): a span scores the sum of its start and end logits, no
answer that of [CLS]; over windows the lowest score of no answer counts, as in their run_squad.py.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from framework.tasks.question_answering.features import Window


@dataclass(frozen=True, slots=True)
class WindowSpans:
    """The best spans of one window, best first.

    Attributes:
        firsts: (spans,) first token, counted from the window's first.
        lasts: (spans,) last token.
        scores: (spans,) float32 sums of two logits.
        null_score: That of [CLS].
    """

    firsts: np.ndarray
    lasts: np.ndarray
    scores: np.ndarray
    null_score: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer: a span of characters, or none.

    Attributes:
        score: Sum of two logits.
        span: First character and the one behind the last; None: the context does not answer.
    """

    score: float
    span: tuple[int, int] | None


def best_spans(start_logits: np.ndarray, end_logits: np.ndarray, max_answer_length: int, n_best: int) -> WindowSpans:
    """All spans of a window are looked at, not only those of the best starts and ends.

    Args:
        start_logits: (1 + window,) float32: [CLS], then the tokens of the window.
        end_logits: Likewise.
        max_answer_length: Most tokens of a span.
        n_best: How many to keep.
    """
    null_score = float(start_logits[0] + end_logits[0])
    start, end = start_logits[1:], end_logits[1:]
    width = min(max_answer_length, len(start))
    if width == 0:
        return WindowSpans(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), null_score)
    # Row: first token; column: tokens after it.
    ends = np.lib.stride_tricks.sliding_window_view(np.append(end, np.full(width - 1, -np.inf, np.float32)), width)
    scores = (start[:, None] + ends).ravel()
    kept = np.argpartition(-scores, n_best - 1)[:n_best] if len(scores) > n_best else np.arange(len(scores))
    kept = kept[np.lexsort((kept, -scores[kept]))]
    firsts, more = np.divmod(kept, width)
    inside = firsts + more < len(start)
    return WindowSpans(
        firsts[inside].astype(np.int32), (firsts + more)[inside].astype(np.int32), scores[kept][inside], null_score
    )


def assemble_answers(
    windows: Sequence[Window], decoded: Sequence[WindowSpans], n_best: int, no_answer_threshold: float | None
) -> list[dict[str, Any]]:
    """A prediction for each question.

    Args:
        windows: Of all questions, those of one side by side.
        decoded: The spans of each.
        n_best: Candidates over which probabilities are taken.
        no_answer_threshold: There is no answer where no answer scores more than this above the best span; None: there
            is always one, if the context has any token.

    Returns:
        `answer` (a part of the context, "" for none), `start` and `end` (characters; None for none), `probability`
        among the candidates, and these as `n_best`, best first.
    """
    predictions = []
    for question, spans, null in _by_question(windows, decoded):
        candidates = spans[:n_best]
        chosen = candidates[0] if candidates else null
        if no_answer_threshold is not None or not candidates:
            candidates = sorted([*candidates, null], key=lambda each: -each.score)
            if no_answer_threshold is not None and null.score - chosen.score > no_answer_threshold:
                chosen = null
        context = question.question.context
        scores = np.array([each.score for each in candidates])
        weights = np.exp(scores - scores.max())
        told = [
            _told(context, each, probability)
            for each, probability in zip(candidates, (weights / weights.sum()).tolist(), strict=True)
        ]
        predictions.append(told[candidates.index(chosen)] | {"n_best": told})
    return predictions


def _by_question(
    windows: Sequence[Window], decoded: Sequence[WindowSpans]
) -> Iterator[tuple[Window, list[Candidate], Candidate]]:
    """A window of each question, its spans by score (of one span the best score), and its score of no answer."""
    pairs = zip(windows, decoded, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].row):
        best: dict[tuple[int, int], float] = {}
        null_score = np.inf
        for window, spans in group:
            null_score = min(null_score, spans.null_score)
            starts = window.passage.starts[window.first + spans.firsts].tolist()
            ends = window.passage.ends[window.first + spans.lasts].tolist()
            for start, end, score in zip(starts, ends, spans.scores.tolist(), strict=True):
                span = _cut(window.question.context, start, end)
                best[span] = max(score, best.get(span, -np.inf))
        found = [Candidate(score, span) for span, score in sorted(best.items(), key=lambda item: (-item[1], item[0]))]
        yield window, found, Candidate(null_score, None)


def _cut(context: str, start: int, end: int) -> tuple[int, int]:
    """Without the space that a byte-level token begins with, with the accents that a normaliser may have dropped."""
    while start < end and context[start].isspace():
        start += 1
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return start, end


def _told(context: str, candidate: Candidate, probability: float) -> dict[str, Any]:
    start, end = candidate.span or (None, None)
    answer = context[start:end] if candidate.span else ""
    return {"answer": answer, "start": start, "end": end, "probability": probability}
