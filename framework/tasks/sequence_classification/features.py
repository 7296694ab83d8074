"""Sequences of sequence classification: a text or a pair (`framework.data.layout`) with its targets."""

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
    """Builds a source with the targets of the problem and the count `classification`.

    Args:
        texts: Text of each sequence.
        pairs: Second text of each sequence; None for single texts.
        answers: Value of the label column of each sequence; None if unknown.
        problem: Problem with its label set.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of a sequence, special tokens included.
        records: Rows of the data, as in FlatSource.
    """
    layout = lay_out(texts, pairs, tokenizer, max_length)
    counts = {LOSS_TERM: problem.counts(answers)}
    return layout.source(problem.targets(answers), counts, max_length, records=records)
