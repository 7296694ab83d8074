"""Sequences of sequence classification: a text or a pair (`framework.data.layout`) with its targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.examples.answers import Answer
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.sequence_classification.problem import Problem

LOSS_TERM = "classification"
GROUPS = "groups"
"""Name of the target with the index of each sequence's group."""


@dataclass(frozen=True)
class SequenceGroups:
    """Groups of sequences.

    Attributes:
        indices: (sequences,) int64, index of the group of each sequence.
        terms: Loss term of each group; empty: all groups share the term `classification`.
    """

    indices: np.ndarray
    terms: tuple[str, ...] = ()


def classification_source(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    answers: Sequence[Answer | None],
    problem: Problem,
    tokenizer: Tokenizer,
    max_length: int,
    records: Sequence[Any] = (),
    keeps_texts: bool = False,
    groups: SequenceGroups | None = None,
) -> FlatSource:
    """Builds a source with the targets of the problem and the count `classification`, or a count for each group.

    Args:
        texts: Text of each sequence.
        pairs: Second text of each sequence; None for single texts.
        answers: Value of the label column of each sequence; None if unknown.
        problem: Problem with its label set.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of a sequence, special tokens included.
        records: Rows of the data, as in FlatSource.
        keeps_texts: True to keep the texts for an augmentation that rewrites them.
        groups: Groups of the sequences, which become the target `groups`; None: no groups.
    """
    layout = lay_out(texts, pairs, tokenizer, max_length, keeps_texts)
    targets, counts = targets_of(answers, problem, groups)
    return layout.source(targets, counts, max_length, records=records)


def targets_of(
    answers: Sequence[Answer | None], problem: Problem, groups: SequenceGroups | None = None
) -> tuple[dict[str, FlatTarget], dict[str, np.ndarray]]:
    """Returns the targets of sequences, and their weights in the count of each loss term; see `classification_source`.

    Args:
        answers: Value of the label column of each sequence; None if unknown.
        problem: Problem with its label set.
        groups: Groups of the sequences; None: no groups.
    """
    weights = problem.counts(answers)
    targets, counts = problem.targets(answers), {LOSS_TERM: weights}
    if groups is not None:
        targets[GROUPS] = FlatTarget(groups.indices, "sequences")
    if groups is not None and groups.terms:
        counts = {term: weights * (groups.indices == index) for index, term in enumerate(groups.terms)}
    return targets, counts
