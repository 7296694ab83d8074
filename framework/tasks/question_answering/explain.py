"""Explanations of answers: the window and the two tokens whose logits give the score of the predicted span."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.data.flat_source import FlatSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.explanation import Explained, TokenSpans, locate_texts, located, one_item
from framework.tasks.question_answering.decode import WindowSpans, answer_spans
from framework.tasks.question_answering.features import Window

_NO_ANSWER = (0, 0)
"""Start and end at [CLS]."""


def explained_answers(
    source: FlatSource, decoded: Sequence[WindowSpans], predictions: Sequence[Mapping[str, Any]]
) -> list[list[Explained]]:
    """Returns the score of each answer: the sum of its start and its end logit in the window that scores it highest.

    Without an answer it is the score of [CLS] in the window where it is lowest, as in `assemble_answers`. The name is
    the answer, and the target its first and its last token in the sequence.

    Args:
        source: Source of the windows.
        decoded: Spans of each window.
        predictions: Prediction of each question.
    """
    items: list[list[int]] = [[] for _ in predictions]
    for item, window in enumerate(source.records):
        items[window.row].append(item)
    chosen = []
    for own, prediction in zip(items, predictions, strict=True):
        if prediction["start"] is None:
            item, tokens = min(own, key=lambda each: decoded[each].null_score), _NO_ANSWER
        else:
            item, span = _best_window(source.records, decoded, own, (prediction["start"], prediction["end"]))
            head = int(one_item(source, item).targets["window_starts"])
            spans = decoded[item]
            tokens = head + int(spans.firsts[span]), head + int(spans.lasts[span])
        chosen.append([Explained(item, tokens, prediction["answer"])])
    return chosen


def _best_window(
    windows: Sequence[Window], decoded: Sequence[WindowSpans], items: Sequence[int], answer: tuple[int, int]
) -> tuple[int, int]:
    """Returns the item that scores an answer highest, and the index of the answer among its spans."""
    candidates = [
        (float(decoded[item].scores[index]), item, index)
        for item in items
        for index, span in enumerate(answer_spans(windows[item], decoded[item]))
        if span == answer
    ]
    _, item, index = max(candidates, key=lambda each: (each[0], -each[1]))
    return item, index


def locate_window(source: FlatSource, item: int, tokenizer: Tokenizer) -> TokenSpans:
    """Locates the tokens of a window in the question and in the context.

    Args:
        source: Source of the windows.
        item: Index of the window.
        tokenizer: Tokenizer of the model.
    """
    window, batch = source.records[item], one_item(source, item)
    head, length = int(batch.targets["window_starts"]), len(batch.input_ids)
    question, context = window.question.question, window.question.context
    front = locate_texts(batch.input_ids.numpy()[:head], {"question": question}, tokenizer)
    passage, own = window.passage, slice(window.first, window.first + length - 1 - head)
    of_context = located("context", np.arange(head, length - 1), passage.starts[own], passage.ends[own])
    texts = {"question": question, "context": context}
    return TokenSpans(texts, {**front.spans, **of_context}, range(length), front.cut)
