"""Sequences of sequence classification: a text or a pair (`framework.data.layout`), and a label."""

from collections.abc import Sequence

import numpy as np

from framework.constants import IGNORE_INDEX
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.tokenization.tokenizer import Tokenizer


def classification_source(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: np.ndarray | None,
    tokenizer: Tokenizer,
    max_length: int,
) -> FlatSource:
    """Target: labels (sequences,); count: classification.

    Args:
        texts: One for each sequence.
        pairs: The second texts; None for single texts.
        labels: (sequences,) int64 places in the label set, IGNORE_INDEX where unknown; None: all unknown.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included.
    """
    layout = lay_out(texts, pairs, tokenizer, max_length)
    labels = np.full(len(texts), IGNORE_INDEX) if labels is None else np.asarray(labels, dtype=np.int64)
    return FlatSource(
        layout.input_ids,
        layout.lengths,
        {"labels": FlatTarget(labels, "sequences")},
        {"classification": labels != IGNORE_INDEX},
        max_length,
        layout.token_type_ids,
    )
