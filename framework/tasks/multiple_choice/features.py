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
from framework.tasks.multiple_choice.data import ChoiceExample

LOSS_TERM = "choice"


def choice_source(examples: Sequence[ChoiceExample], tokenizer: Tokenizer, max_length: int) -> FlatSource:
    """Builds an item for each row; its record is the row.

    Targets, each (sequences,): choice_places, the index of the choice in its item, 0 for dummies; is_right, 1 for the
    right choice, 0 for others, IGNORE_INDEX if the right choice is unknown. Count: choice, one for each row whose right
    choice is known.

    Args:
        examples: Rows.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of a sequence, special tokens included; the longer text of a long pair is truncated.
    """
    firsts: list[str] = []
    seconds: list[str] = []
    for example in examples:
        before = "" if example.context is None else f"{example.question} "
        firsts += [example.question if example.context is None else example.context] * len(example.choices)
        seconds += [before + choice for choice in example.choices]
    layout = lay_out(firsts, seconds, tokenizer, max_length)
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
