"""Builds sequences of multiple choice: an item has one sequence per choice, and they do not attend to each other.

The layout is `[CLS] question [SEP] choice [SEP]`, and with a context `[CLS] context [SEP] question choice [SEP]`, as
`framework.data.layout` joins pairs. The longer text of a long pair is truncated. It follows Devlin et al. 2019
(arXiv:1810.04805, section 4.4).
"""

from collections.abc import Sequence

import numpy as np

from framework import ragged
from framework.batch import IGNORE_INDEX
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.explanation import TextSpan, TokenSpans, locate_texts
from framework.tasks.multiple_choice.data import ChoiceExample

LOSS_TERM = "choice"


def choice_source(
    examples: Sequence[ChoiceExample], tokenizer: Tokenizer, max_length: int, keeps_texts: bool = False
) -> FlatSource:
    """Builds an item for each row; its record is the row.

    Targets, each (sequences,): choice_places, the index of the choice in its item, 0 for dummies; is_right, 1 for the
    right choice, 0 for others, IGNORE_INDEX if the right choice is unknown. Count: choice, one for each row whose right
    choice is known.

    Args:
        examples: Rows.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of a sequence, special tokens included; the longer text of a long pair is truncated.
        keeps_texts: True to keep the texts for an augmentation that rewrites them.
    """
    pairs = [_sequence_texts(example, choice) for example in examples for choice in example.choices]
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    layout = lay_out(firsts, seconds, tokenizer, max_length, keeps_texts)
    sizes = np.array([len(example.choices) for example in examples], dtype=np.int64)
    choice_indices = ragged.offsets_within(sizes)
    right = np.array([IGNORE_INDEX if each.right is None else each.right for each in examples], dtype=np.int64)
    right = np.repeat(right, sizes)
    is_right = np.where(right == IGNORE_INDEX, IGNORE_INDEX, right == choice_indices)
    targets = {
        "choice_places": FlatTarget(choice_indices, "sequences", filler=0),
        "is_right": FlatTarget(is_right, "sequences"),
    }
    counts = {LOSS_TERM: (right == choice_indices).astype(np.float64)}
    return layout.source(targets, counts, max_length, sizes, examples)


def _sequence_texts(example: ChoiceExample, choice: str) -> tuple[str, str]:
    """Returns the two texts of the sequence of a choice."""
    if example.context is None:
        return example.question, choice
    return example.context, f"{example.question} {choice}"


def locate_choice(source: FlatSource, item: int, index: int, tokenizer: Tokenizer) -> TokenSpans:
    """Locates the tokens of one choice of a row in the context, the question and the choice.

    Args:
        source: Source of the rows.
        item: Index of the row.
        index: Index of the choice.
        tokenizer: Tokenizer of the model.
    """
    example, tokens = source.records[item], source.tokens(np.array([item]))
    choice = example.choices[index]
    first, second = _sequence_texts(example, choice)
    begin = int(tokens.lengths[:index].sum())
    ids = tokens.input_ids[begin : begin + int(tokens.lengths[index])]
    name = "question" if example.context is None else "context"
    both = locate_texts(ids, {name: first, "choices": second}, tokenizer, begin)
    if example.context is None:
        return both
    # The second text is the question, a space and the choice.
    shift = len(second) - len(choice)
    cut = [part for each in both.cut for part in _divided(each, shift)]
    spans = {token: parts[-1] for token, span in both.spans.items() if (parts := _divided(span, shift))}
    texts = {"context": first, "question": example.question, "choices": choice}
    return TokenSpans(texts, spans, both.tokens, cut)


def _divided(span: TextSpan, shift: int) -> list[TextSpan]:
    """Divides a part of the joined question and choice into their parts; the choice begins at `shift`."""
    if span.field != "choices":
        return [span]
    parts = [
        TextSpan("question", span.start, min(span.end, shift - 1)),
        TextSpan("choices", max(span.start - shift, 0), span.end - shift),
    ]
    return [each for each in parts if each.start < each.end]
