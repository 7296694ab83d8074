"""Privacy units of the rows of activations: which rows of a packed micro-batch belong to which item of the data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.errors import ConfigError

TOKENS, SEQUENCES = "tokens", "sequences"
"""Meanings of rows, apart from the names of index targets."""


@dataclass(frozen=True)
class Bucket:
    """Units with similar numbers of rows, padded to one number.

    Attributes:
        units: (n,) int64, indices of the units.
        rows: (n, width) int64, indices of their rows; the number of rows of the tensor where a unit has no more rows.
    """

    units: Tensor
    rows: Tensor


class RowUnits:
    """Unit of each row.

    Args:
        index: (rows,) int64, index of the unit of each row.
        num_units: Number of units.
    """

    def __init__(self, index: Tensor, num_units: int) -> None:
        self.index = index
        self.num_units = num_units
        self._order = torch.argsort(index, stable=True)
        self._sizes = torch.bincount(index, minlength=num_units)
        self._starts = self._sizes.cumsum(0) - self._sizes

    @cached_property
    def has_one_row_each(self) -> bool:
        """True if row i is the only row of unit i."""
        count = len(self.index)
        return count == self.num_units and bool((self.index == torch.arange(count, device=self.index.device)).all())

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Buckets of all units that have rows; the width of each is at most twice the rows of its smallest unit."""
        sizes = self._sizes.tolist()
        widths = sorted({1 << (size - 1).bit_length() for size in sizes if size})
        buckets = []
        for width in widths:
            members = [unit for unit, size in enumerate(sizes) if width // 2 < size <= width]
            units = torch.tensor(members, device=self.index.device)
            buckets.append(Bucket(units, self.rows_of(units, max(sizes[unit] for unit in members))))
        return buckets

    def rows_of(self, units: Tensor, width: int | None = None) -> Tensor:
        """Returns the rows of some units as in `Bucket`: (n, width); None: the width of the largest of them."""
        sizes, starts = self._sizes[units, None], self._starts[units, None]
        if width is None:
            width = int(sizes.max()) if len(units) else 0
        offsets = torch.arange(width, device=self.index.device)[None]
        # An index past the end is replaced in every padded place.
        order = torch.cat([self._order, self._order.new_full((1,), len(self.index))])
        return order[torch.where(offsets < sizes, starts + offsets, len(self.index))]

    def sums(self, values: Tensor) -> Tensor:
        """Adds the rows of each unit: (rows, ...) to (units, ...)."""
        return values.new_zeros(self.num_units, *values.shape[1:]).index_add_(0, self.index, values)


class BatchUnits:
    """Units of one micro-batch: consecutive sequences with one `PackedBatch.unit_ids`, dummy sequences included.

    It is the only rule of ownership: a token belongs to the unit of its sequence, and a target to that of its token.

    Args:
        batch: Micro-batch.

    Attributes:
        batch: Micro-batch as given.
        num_units: Number of units.
        num_real: Number of real units, which come first.
    """

    def __init__(self, batch: PackedBatch) -> None:
        self.batch = batch
        if batch.group_size * batch.unit_size > 1:
            ids = batch.unit_ids
            starts = torch.ones_like(ids)
            starts[1:] = (ids[1:] != ids[:-1]).long()
            index = starts.cumsum(0) - 1
        else:
            index = torch.arange(len(batch.sequence_ids), device=batch.sequence_ids.device)
        self.num_units = int(index[-1]) + 1
        self.num_real = int(index[batch.num_sequences - 1]) + 1 if batch.num_sequences else 0
        self._sequences = RowUnits(index, self.num_units)
        self._known = {SEQUENCES: self._sequences}

    def of(self, meaning: str) -> RowUnits:
        """Returns the units of rows.

        Args:
            meaning: "tokens", "sequences", or the name of a target that holds the index of a token for each row.
        """
        if meaning not in self._known:
            if meaning == TOKENS:
                lengths = self.batch.cu_seqlens.diff().long()
                index = torch.repeat_interleave(self._sequences.index, lengths, output_size=len(self.batch.input_ids))
            else:
                index = self.of(TOKENS).index[self.batch.targets[meaning]]
            self._known[meaning] = RowUnits(index, self.num_units)
        return self._known[meaning]

    def losses(self, sequence_losses: Tensor) -> Tensor:
        """Adds the losses of the sequences of each unit: (sequences,) to (units,)."""
        return self._sequences.sums(sequence_losses)


def meaning_of_rows(name: str, head_rows: dict[str, str]) -> str:
    """Returns the meaning of the rows of a module's activations, by the name of the module in the `TaskModel`.

    Args:
        name: Name of the module.
        head_rows: `Task.head_rows`.

    Raises:
        ConfigError: The task does not state the meaning.
    """
    if not name.startswith("head."):
        return TOKENS
    inner = name.removeprefix("head.")
    known = [prefix for prefix in head_rows if inner == prefix or inner.startswith(prefix and f"{prefix}.")]
    if not known:
        raise ConfigError(
            f"the task does not state which rows of `{name}` belong to which item. A private run needs this for every "
            "module of the head. Add the module to `head_rows` of the task."
        )
    return head_rows[max(known, key=len)]


def with_zero_row(rows: Tensor) -> Tensor:
    """Adds the row that the padded places of a bucket select: (rows, channels) to (rows + 1, channels) fp32."""
    result = rows.new_empty(len(rows) + 1, rows.shape[1], dtype=torch.float32)
    result[:-1] = rows
    result[-1] = 0
    return result


def in_parts(bucket: Bucket, elements_per_unit: int, most: int) -> Iterator[Bucket]:
    """Splits a bucket so that a temporary tensor with some elements for each unit has at most `most` elements."""
    size = max(1, most // max(elements_per_unit, 1))
    for start in range(0, len(bucket.units), size):
        yield Bucket(bucket.units[start : start + size], bucket.rows[start : start + size])
