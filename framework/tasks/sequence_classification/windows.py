"""Windows over long texts: one score for a text from the scores of all of its windows.

A text that is longer than a sequence becomes several sequences, which the plan keeps in one micro-batch as an item. The
scores of the windows are averaged, or their largest is taken for each label (Pappagari et al. 2019, arXiv:1910.10781,
section 4, compare such combinations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from framework import ragged
from framework.batch import PackedBatch
from framework.data.examples.answers import Answer
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import window_firsts
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.explanation import TextSpan, TokenSpans, located
from framework.tasks.sequence_classification.features import SequenceGroups, targets_of
from framework.tasks.sequence_classification.problem import Problem

PLACES = "window_places"
"""Name of the target with the index of each window in its text."""

WindowPooling = Literal["mean", "max"]

_TEXTS_AT_ONCE = 1000
_NUM_SPECIALS = 2


@dataclass(frozen=True)
class Scoring:
    """Settings between the pooled tokens and the scores of a text. Their keys are those of the task.

    Attributes:
        projection: Projection between pooling and classifier: "family", that of the encoder's family, or "none".
        windows: Combination of the scores of a text's windows: "mean" or "max"; None: long texts are truncated.
        stride: Tokens from the start of a window to the start of the next; None: half of the tokens of a window.
    """

    is_flat: ClassVar[bool] = True

    projection: Literal["family", "none"] = "family"
    windows: WindowPooling | None = None
    stride: int | None = None

    def stride_of(self, max_length: int) -> int:
        """Returns the stride for windows of this many tokens, special tokens included.

        Raises:
            ConfigError: It is not in 1 to `max_length` - 2, so windows would not cover every token of a text.
        """
        room = max_length - _NUM_SPECIALS
        if self.stride is None:
            return max(1, room // 2)
        if self.windows is not None and not 1 <= self.stride <= room:
            raise ConfigError(
                f"task.stride is {self.stride}. With task.windows it must be at least 1 and at most task.max_length - "
                f"2, here {room}. Change one of them."
            )
        return self.stride


def window_source(
    texts: Sequence[str],
    answers: Sequence[Answer | None],
    problem: Problem,
    tokenizer: Tokenizer,
    max_length: int,
    stride: int,
    records: Sequence[Any] = (),
    groups: SequenceGroups | None = None,
) -> FlatSource:
    """Builds one item per text, with one sequence `[CLS] window [SEP]` per window.

    The targets of the problem belong to the first window of each text. The other windows have no target, and count 0.

    Args:
        texts: Texts.
        answers: Value of the label column of each text; None if unknown.
        problem: Problem with its label set.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of a sequence, special tokens included.
        stride: Tokens from the start of a window to the start of the next.
        records: Rows of the data, as in FlatSource.
        groups: Groups of the texts; None: no groups.
    """
    room = max_length - _NUM_SPECIALS
    before, after = np.array([tokenizer.cls_id], dtype=np.int32), np.array([tokenizer.sep_id], dtype=np.int32)
    pieces: list[np.ndarray] = []
    lengths, sizes = [], []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        for ids in tokenizer.encode_batch(texts[begin : begin + _TEXTS_AT_ONCE]):
            parts = [ids[first : first + room].copy() for first in window_firsts(len(ids), room, stride)]
            pieces += [piece for part in parts for piece in (before, part, after)]
            lengths += [len(part) + _NUM_SPECIALS for part in parts]
            sizes.append(len(parts))
    item_sizes = np.array(sizes, dtype=np.int64)
    places = ragged.offsets_within(item_sizes)
    owners = np.repeat(np.arange(len(texts)), item_sizes)
    own_answers: list[Answer | None] = [None] * len(owners)
    for first, answer in zip(ragged.starts(item_sizes).tolist(), answers, strict=True):
        own_answers[first] = answer
    own_groups = None if groups is None else SequenceGroups(groups.indices[owners], groups.terms)
    targets, counts = targets_of(own_answers, problem, own_groups)
    return FlatSource(
        np.concatenate([np.zeros(0, dtype=np.int32), *pieces]),
        np.array(lengths, dtype=np.int64),
        {**targets, PLACES: FlatTarget(places, "sequences", filler=0)},
        counts,
        max_length,
        item_sizes=item_sizes,
        records=records,
        notes={"windows": f"{len(lengths):,}"},
    )


def pool_windows(scores: Tensor, batch: PackedBatch, pooling: WindowPooling) -> Tensor:
    """Replaces the scores of each window by those of its text.

    The windows of a text are adjacent and are reduced in their order, so the result does not depend on the other texts.

    Args:
        scores: (sequences, labels).
        batch: Micro-batch with the target `window_places`; each dummy is a text of its own. Without this target each
            sequence is a text.
        pooling: "mean" or "max".

    Returns:
        (sequences, labels) fp32.
    """
    if PLACES not in batch.targets:
        return scores
    items = (batch.targets[PLACES] == 0).cumsum(0) - 1
    starts = torch.searchsorted(items, torch.arange(len(items) + 1, device=items.device))
    # `unsafe` only skips a check of the offsets, which would synchronise with the device.
    pooled = torch.segment_reduce(scores.float(), pooling, offsets=starts, axis=0, unsafe=True)
    return pooled.index_select(0, items)


def first_windows(scores: Tensor, batch: PackedBatch) -> Tensor:
    """Returns the rows of the first window of each real text: (sequences, labels) to (items, labels)."""
    return scores[: batch.num_sequences][batch.targets[PLACES][: batch.num_sequences] == 0]


def locate_windows(
    source: FlatSource, item: int, field: str, text: str, tokenizer: Tokenizer, stride: int
) -> TokenSpans:
    """Locates the tokens of all windows of a text in it. Tokens where windows overlap have the same span.

    Args:
        source: Source of the texts.
        item: Index of the text.
        field: Field of the text.
        text: The text.
        tokenizer: Tokenizer of the model.
        stride: Tokens from the start of a window to the start of the next.
    """
    ((_, starts, ends),) = tokenizer.encode_with_offsets([text])
    begin, first = 0, 0
    spans: dict[int, TextSpan] = {}
    for length in source.tokens(np.array([item])).lengths.tolist():
        own = slice(first, first + length - _NUM_SPECIALS)
        spans |= located(field, np.arange(begin + 1, begin + length - 1), starts[own], ends[own])
        begin, first = begin + length, first + stride
    return TokenSpans({field: text}, spans, range(begin))
