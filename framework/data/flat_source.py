"""Sequences for fine-tuning: tokenised once, held in memory as flat arrays, and gathered into micro-batches.

An item is the unit that the plan assigns: usually one sequence, sometimes several that do not attend to each other.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from framework import ragged
from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import NO_CUTTING, Cutting, SplitFacts
from framework.data.picture_sequences import PictureSequences
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import StepSequences


@dataclass(frozen=True, slots=True)
class FlatTarget:
    """One named target of all sequences.

    Attributes:
        values: (sequences, ...) one entry per sequence, or (tokens, ...) one entry per token; integers or floats.
        axis: First axis of the values.
        filler: Value for dummy sequences and tokens.
        is_position: True if the values are positions within their sequence. They are converted to positions within the
            micro-batch; negative values are kept. For axis "sequences".
    """

    values: np.ndarray
    axis: Literal["sequences", "tokens"]
    filler: int = IGNORE_INDEX
    is_position: bool = False


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """Sequences of some items, as they are packed into a batch.

    Attributes:
        input_ids: (tokens,) int32.
        token_indices: (tokens,) int64, index of each token in the arrays of the source, for its segment and targets.
        lengths: (sequences,) int64, number of tokens of each sequence.
        sizes: (items,) int64, number of sequences of each item.
    """

    input_ids: np.ndarray
    token_indices: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray


class HeldItems:
    """Items that are held in memory and are the same in every epoch: the part of a SequenceSource that needs no tokens.

    Args:
        item_lengths: (items,) int64, number of tokens of each item, including special tokens.

    Attributes:
        shuffle: Order of an epoch.
    """

    def __init__(self, item_lengths: np.ndarray) -> None:
        self.shuffle: Shuffle = Shuffle()
        self._item_lengths = item_lengths

    def __len__(self) -> int:
        return len(self._item_lengths)

    @property
    def mean_length(self) -> float:
        """Returns the mean number of tokens of an item of an epoch, including special tokens."""
        return self.shuffle.mean(self._item_lengths)

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing: everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:  # noqa: ARG002  the same in every epoch
        """Returns (items,) int64, the number of tokens of each item, including special tokens."""
        return self._item_lengths[indices]


class FlatSource(HeldItems):
    """Items of one split (`framework.data.planning.plan.SequenceSource`), the same in every epoch and step.

    Args:
        input_ids: (tokens,) ids of all sequences, end to end, including special tokens.
        lengths: (sequences,) number of tokens of each sequence.
        targets: Prediction targets of the task, by name.
        counts: (sequences,) weight of each sequence in the count of each loss term, by term.
        max_length: Largest number of tokens of a sequence, from the config of the task.
        token_type_ids: (tokens,) segment of each token; None: all 0.
        item_sizes: (items,) number of sequences of each item, which are adjacent; None: one per item.
        records: Objects that the task needs for each item when it decodes predictions or computes scores.
        cutting: Counts of truncated texts.
        notes: Further facts, by name.
        texts: (sequences,) first text of each sequence, followed for pairs by the array of second texts; None: texts
            are not kept.
        pictures: Pictures of the sequences, whose patches replace some of their tokens; None: there are none.

    Attributes:
        facts: Facts about the split; `framework.data.facts.with_facts` adds facts about its rows.
        max_length: Largest number of tokens of an item: `max_sequence_length` if each item is one sequence, otherwise
            the length of the longest item.
        max_sequence_length: Largest number of tokens of a sequence.
        group_size: Largest number of sequences of an item.
        records: Records as given.
        texts: Texts as given.
        pictures: Pictures as given.
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
        texts: tuple[pa.Array, ...] | None = None,
        pictures: PictureSequences | None = None,
    ) -> None:
        self.pictures = pictures
        self.records = records
        self.texts = texts
        self.facts = SplitFacts(len(lengths) if item_sizes is None else len(item_sizes), cutting=cutting, notes=notes)
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
        super().__init__(tokens_before[self._item_starts + sizes] - tokens_before[self._item_starts])
        self.max_length = max_length if item_sizes is None else int(self._item_lengths.max(initial=1))

    @property
    def fingerprint(self) -> str:
        """Returns a hash of ids, lengths, segments, items, targets, and names and sizes of pictures."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self._input_ids, self._lengths, self._item_sizes, self._token_type_ids):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        for name, target in self._targets.items():
            digest.update(name.encode() + np.ascontiguousarray(target.values).tobytes())
        if self.pictures is not None:
            digest.update(self.pictures.fingerprint)
        return digest.hexdigest()

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:  # noqa: ARG002  the same at every step
        """Builds one micro-batch; its sequences are items."""
        return self.pack(sequences, self.tokens(sequences.indices), shape)

    def tokens(self, indices: np.ndarray) -> FlatTokens:
        """Returns the unchanged sequences of items, given by their indices (items,)."""
        rows, sizes = self.sequences_of(indices)
        lengths = self._lengths[rows]
        token_indices = ragged.ranges(self._token_starts[rows], lengths)
        return FlatTokens(self._input_ids[token_indices], token_indices, lengths, sizes)

    def sequences_of(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sequences of some items, and the number of sequences of each of these items."""
        sizes = self._item_sizes[indices]
        return ragged.ranges(self._item_starts[indices], sizes), sizes

    def with_tokens(
        self, indices: np.ndarray, input_ids: np.ndarray, lengths: np.ndarray, token_type_ids: np.ndarray | None
    ) -> "FlatSource":
        """Returns a source of some items with other tokens; all targets must belong to sequences.

        Args:
            indices: (items,) items to keep, in the order of the new source.
            input_ids: (tokens,) ids of their sequences, end to end.
            lengths: (sequences,) number of tokens of each sequence.
            token_type_ids: (tokens,) segment of each token; None: all 0.
        """
        rows, sizes = self.sequences_of(indices)
        targets = {name: replace(target, values=target.values[rows]) for name, target in self._targets.items()}
        counts = {term: weights[rows] for term, weights in self._counts.items()}
        source = FlatSource(input_ids, lengths, targets, counts, self.max_sequence_length, token_type_ids, sizes)
        source.group_size = self.group_size
        return source

    def pack(self, items: StepSequences, tokens: FlatTokens, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch of items from their sequences.

        Args:
            items: Items of the micro-batch.
            tokens: Sequences of these items, as `tokens` returns them or edited.
            shape: Shape as in `build`.
        """
        sizes = tokens.sizes
        rows = ragged.ranges(self._item_starts[items.indices], sizes)
        members = ragged.offsets_within(sizes)
        batch = pack_sequences(
            tokens.input_ids,
            tokens.lengths,
            np.repeat(items.sequence_ids, sizes) * self.group_size + members,
            None if self._token_type_ids is None else self._token_type_ids[tokens.token_indices],
            {
                name: _gathered(target, rows, tokens.token_indices, tokens.lengths)
                for name, target in self._targets.items()
            },
            {term: float(weights[rows].sum()) for term, weights in self._counts.items()},
            shape,
            None if self.pictures is None else self.pictures.patches(rows, tokens.lengths),
        )
        return replace(batch, group_size=self.group_size)


class DerivedSource:
    """Items that are made from those of a FlatSource: the part of a SequenceSource that the two share.

    Args:
        source: Source of the items.

    Attributes:
        source: Source as given. The other attributes are those of the source, unless a subclass replaces them.
    """

    def __init__(self, source: FlatSource) -> None:
        self.source = source
        self.shuffle = source.shuffle
        self.max_length = source.max_length
        self.max_sequence_length = source.max_sequence_length
        self.group_size = source.group_size
        self.records = source.records
        self.facts = source.facts

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the source; the config determines the rest."""
        return self.source.fingerprint

    @property
    def mean_length(self) -> float:
        """Returns the mean length of the source."""
        return self.source.mean_length

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing: everything is in memory."""


def _gathered(target: FlatTarget, rows: np.ndarray, token_indices: np.ndarray, lengths: np.ndarray) -> Target:
    values = target.values[token_indices if target.axis == "tokens" else rows]
    if target.is_position:
        starts = ragged.starts(lengths).reshape(-1, *(1 for _ in values.shape[1:]))
        values = np.where(values < 0, values, values + starts)
    return Target(values, target.axis, target.filler)
