"""Decoding of token scores to answers: the best spans of a window, and of all windows of a question (NumPy, host).

Follows Devlin et al. 2019 (arXiv:1810.04805, sections 4.2 and 4.3). The score of a span is the sum of its start and end
logits. The score of "no answer" is that sum for [CLS]; over several windows, the lowest counts, as in their
run_squad.py.
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
        firsts: (spans,) index of the first token in the window.
        lasts: (spans,) index of the last token in the window.
        scores: (spans,) float32 sums of two logits.
        null_score: Score of [CLS].
    """

    firsts: np.ndarray
    lasts: np.ndarray
    scores: np.ndarray
    null_score: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """Possible answer: a span of characters, or no answer.

    Attributes:
        score: Sum of two logits.
        span: Start and exclusive end, in characters. None: the context does not answer the question.
    """

    score: float
    span: tuple[int, int] | None


def best_spans(start_logits: np.ndarray, end_logits: np.ndarray, max_answer_length: int, n_best: int) -> WindowSpans:
    """Returns the best spans of a window. Considers all spans, not only those of the best starts and ends.

    Args:
        start_logits: (1 + window,) float32: [CLS], then the tokens of the window.
        end_logits: (1 + window,) float32, in the same order.
        max_answer_length: Maximum number of tokens of a span.
        n_best: Number of spans to keep.
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
    """Builds the prediction of each question.

    Args:
        windows: Windows of all questions. The windows of a question are adjacent.
        decoded: Spans of each window.
        n_best: Number of candidates in the softmax of probabilities.
        no_answer_threshold: Predict no answer if its score exceeds that of the best span by more than this. None:
            always predict an answer, if the context has any token.

    Returns:
        Per question: `answer` (a part of the context, "" for no answer), `start` and `end` (characters; None for no
        answer), `probability` among the candidates, and the candidates as `n_best`, best first.
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
        answers = [
            _prediction(context, each, probability)
            for each, probability in zip(candidates, (weights / weights.sum()).tolist(), strict=True)
        ]
        predictions.append(answers[candidates.index(chosen)] | {"n_best": answers})
    return predictions


def _by_question(
    windows: Sequence[Window], decoded: Sequence[WindowSpans]
) -> Iterator[tuple[Window, list[Candidate], Candidate]]:
    """Yields per question a window, its candidates (best first, each span once), and its "no answer" candidate."""
    pairs = zip(windows, decoded, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].row):
        best: dict[tuple[int, int], float] = {}
        null_score = np.inf
        for window, spans in group:
            null_score = min(null_score, spans.null_score)
            for span, score in zip(answer_spans(window, spans), spans.scores.tolist(), strict=True):
                best[span] = max(score, best.get(span, -np.inf))
        ranked = [Candidate(score, span) for span, score in sorted(best.items(), key=lambda item: (-item[1], item[0]))]
        yield window, ranked, Candidate(null_score, None)


def answer_spans(window: Window, spans: WindowSpans) -> list[tuple[int, int]]:
    """Returns the start and exclusive end of each span of a window, in characters of the context."""
    starts = window.passage.starts[window.first + spans.firsts].tolist()
    ends = window.passage.ends[window.first + spans.lasts].tolist()
    return [_trim(window.question.context, start, end) for start, end in zip(starts, ends, strict=True)]


def _trim(context: str, start: int, end: int) -> tuple[int, int]:
    """Drops the leading space of byte-level tokens and adds trailing accents that a normalizer may have dropped."""
    while start < end and context[start].isspace():
        start += 1
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return start, end


def _prediction(context: str, candidate: Candidate, probability: float) -> dict[str, Any]:
    start, end = candidate.span or (None, None)
    answer = context[start:end] if candidate.span else ""
    return {"answer": answer, "start": start, "end": end, "probability": probability}
