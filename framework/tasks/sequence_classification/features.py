"""Sequences of sequence classification: a text or a pair (`framework.data.layout`), and what is asked of it."""

from collections.abc import Sequence
from typing import Any

from framework.data.examples.answers import Answer
from framework.data.flat_source import FlatSource
from framework.data.layout import lay_out
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.sequence_classification.problem import Problem

LOSS_TERM = "classification"


def classification_source(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    answers: Sequence[Answer | None],
    problem: Problem,
    tokenizer: Tokenizer,
    max_length: int,
    records: Sequence[Any] = (),
) -> FlatSource:
    """Targets as the problem has them; count: classification.

    Args:
        texts: One for each sequence.
        pairs: The second texts; None for single texts.
        answers: What the label column says; None where it is not known.
        problem: With its label set.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included.
        records: As in FlatSource.
    """
    layout = lay_out(texts, pairs, tokenizer, max_length)
    return FlatSource(
        layout.input_ids,
        layout.lengths,
        problem.targets(answers),
        {LOSS_TERM: problem.counts(answers)},
        max_length,
        layout.token_type_ids,
        records=records,
        cutting=layout.cutting,
    )
