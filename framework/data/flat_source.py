"""Sequences of fine-tuning: tokenised once and held as flat arrays, from which micro-batches are gathered.

An item is what the plan places as one: mostly a sequence, sometimes several that do not attend to each other.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from framework import ragged
from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import NO_CUTTING, Cutting, SplitFacts
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.order import Shuffle


@dataclass(frozen=True, slots=True)
class FlatTarget:
    """One named target of all sequences.

    Attributes:
        values: (sequences, ...) one entry a sequence, or (tokens, ...) one a token; integers or floats.
        axis: Which of the two.
        filler: Of dummy sequences and tokens.
        is_position: Values are places within their sequence, and become places within the micro-batch; negative ones
            stay as they are. For axis "sequences".
    """

    values: np.ndarray
    axis: Literal["sequences", "tokens"]
    filler: int = IGNORE_INDEX
    is_position: bool = False


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """The sequences of some items as they go into a batch.

    Attributes:
        input_ids: (tokens,) int32.
        places: (tokens,) int64, where the segment and the targets of each token stand in the source.
        lengths: (sequences,) int64.
        sizes: (items,) int64, sequences of each.
    """

    input_ids: np.ndarray
    places: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray


class FlatSource:
    """The items of one split (`framework.data.planning.plan.SequenceSource`); neither epoch nor step changes them.

    Args:
        input_ids: (tokens,) all sequences end to end, special tokens included.
        lengths: (sequences,) tokens of each.
        targets: What the task predicts, by name.
        counts: (sequences,) weight of each sequence in each loss term's count.
        max_length: Tokens that no sequence may exceed, which the task's config says.
        token_type_ids: (tokens,) segments; None: 0 everywhere.
        item_sizes: (items,) sequences of each item, which lie side by side; None: one each.
        records: What the task wants to know of each item when it reads predictions or scores them; any objects.
        cutting: Counts of truncated texts.
        notes: Further facts, by name.

    Attributes:
        facts: Facts about the split; `framework.data.facts.with_facts` adds those about its rows.
        max_length: Most tokens of an item: `max_sequence_length` where each is one sequence, else those of the longest.
        max_sequence_length: Most tokens of a sequence.
        group_size: Most sequences of an item.
        records: As given.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        targets: Mapping[str, FlatTarget],
        counts: Mapping[str, np.ndarray],
        max_length: int,
        token_type_ids: np.ndarray | None = None,
        item_sizes: np.ndarray | None = None,
        records: Sequence[Any] = (),
        cutting: Cutting = NO_CUTTING,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.records = records
        self.facts = SplitFacts(len(lengths) if item_sizes is None else len(item_sizes), cutting=cutting, notes=notes)
        self.shuffle = Shuffle()
        self.max_sequence_length = max_length
        self._input_ids = input_ids.astype(np.int32, copy=False)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._token_starts = ragged.starts(self._lengths)
        self._token_type_ids = token_type_ids
        self._targets = dict(targets)
        self._counts = {term: np.asarray(weights, dtype=np.float64) for term, weights in counts.items()}
        sizes = np.ones(len(self._lengths), dtype=np.int64) if item_sizes is None else np.asarray(item_sizes)
        self._item_sizes = sizes
        self._item_starts = ragged.starts(sizes)
        self.group_size = int(sizes.max(initial=1))
        tokens_before = ragged.bounds(self._lengths)
        self._item_lengths = tokens_before[self._item_starts + sizes] - tokens_before[self._item_starts]
        self.max_length = max_length if item_sizes is None else int(self._item_lengths.max(initial=1))

    def __len__(self) -> int:
        return len(self._item_sizes)

    @property
    def fingerprint(self) -> str:
        """Of ids, lengths, segments, items and targets."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self._input_ids, self._lengths, self._item_sizes, self._token_type_ids):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        for name, target in self._targets.items():
            digest.update(name.encode() + np.ascontiguousarray(target.values).tobytes())
        return digest.hexdigest()

    @property
    def mean_length(self) -> float:
        """Mean tokens of an item, special tokens included."""
        return float(self._item_lengths.mean())

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Nothing is to be read, everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:  # noqa: ARG002  the same in every epoch
        """(items,) int64 tokens of each, special tokens included."""
        return self._item_lengths[indices]

    def build(
        self,
        epochs: np.ndarray,  # noqa: ARG002  the same in every epoch
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,  # noqa: ARG002  and at every step
        shape: Shape = None,
    ) -> PackedBatch:
        """One micro-batch of items; `sequence_ids` are those of items."""
        return self.pack(indices, self.tokens(indices), sequence_ids, shape)

    def tokens(self, indices: np.ndarray) -> FlatTokens:
        """The sequences of items as they are in the source: (items,) indices."""
        sizes = self._item_sizes[indices]
        rows = ragged.ranges(self._item_starts[indices], sizes)
        lengths = self._lengths[rows]
        places = ragged.ranges(self._token_starts[rows], lengths)
        return FlatTokens(self._input_ids[places], places, lengths, sizes)

    def pack(
        self,
        indices: np.ndarray,
        tokens: FlatTokens,
        sequence_ids: np.ndarray,
        shape: Shape = None,
    ) -> PackedBatch:
        """One micro-batch of items whose sequences are given.

        Args:
            indices: (items,) which ones of the source.
            tokens: Of these items, as `tokens` gives them or changed.
            sequence_ids: (items,) as in `build`.
            shape: As in `build`.
        """
        sizes = tokens.sizes
        rows = ragged.ranges(self._item_starts[indices], sizes)
        members = ragged.offsets_within(sizes)
        batch = pack_sequences(
            tokens.input_ids,
            tokens.lengths,
            np.repeat(sequence_ids, sizes) * self.group_size + members,
            None if self._token_type_ids is None else self._token_type_ids[tokens.places],
            {name: _gathered(target, rows, tokens.places, tokens.lengths) for name, target in self._targets.items()},
            {term: float(weights[rows].sum()) for term, weights in self._counts.items()},
            shape,
        )
        return replace(batch, group_size=self.group_size)


def _gathered(target: FlatTarget, rows: np.ndarray, places: np.ndarray, lengths: np.ndarray) -> Target:
    values = target.values[places if target.axis == "tokens" else rows]
    if target.is_position:
        starts = ragged.starts(lengths).reshape(-1, *(1 for _ in values.shape[1:]))
        values = np.where(values < 0, values, values + starts)
    return Target(values, target.axis, target.filler)
