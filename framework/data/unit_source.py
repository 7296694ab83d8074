"""Items of a source joined to privacy units: all windows of a row, rows of a user, or sequences of a document.

A unit is one item of the plan, so that it is sampled as a whole and its sequences share a micro-batch.
"""

import hashlib
from dataclasses import replace

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.facts import SplitFacts
from framework.data.flat_source import DerivedSource
from framework.data.planning.collate import Shape
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import GroupedSequences, SequenceSource, StepSequences

_SAMPLE = 2000
"""Units of which the mean length is estimated."""


class UnitSource:
    """A `SequenceSource` whose items are units of some rows, and a row has some adjacent items of another source.

    With a bound, each epoch uses the next rows of a larger unit, in their order and cyclically, which depends on no
    other unit.

    Args:
        source: Source of the items.
        rows: (items,) int64 index of the row of each item, ascending; no row is without items.
        units: (rows,) int64 index of the unit of each row; no unit is without rows.
        most_rows: Most rows of a unit in a step; None: all of them.

    Attributes:
        unit_size: Most items of a unit in a step.
        max_length: Upper bound of the tokens of a unit in a step.
        max_sequence_length: Upper bound of the tokens of a sequence.
        group_size: Most sequences of a unit in a step.
        facts: Facts about the rows, without their units.
        shuffle: Order of an epoch; Poisson samples have none.
    """

    def __init__(
        self, source: SequenceSource, rows: np.ndarray, units: np.ndarray, most_rows: int | None = None
    ) -> None:
        self.source = source
        self._row_sizes = np.bincount(rows)
        self._row_starts = ragged.starts(self._row_sizes)
        self._unit_sizes = np.bincount(units)
        self._unit_starts = ragged.starts(self._unit_sizes)
        self._order = np.argsort(units, kind="stable")
        self._most_rows = int(self._unit_sizes.max()) if most_rows is None else most_rows
        self.unit_size = int(self._bounds(self._row_sizes).max())
        items = np.arange(len(rows))
        # Private runs augment by deletions and swaps only, so no epoch has longer items.
        longest = source.source if isinstance(source, DerivedSource) else source
        lengths = longest.lengths(np.zeros_like(items), items)
        self.max_length = int(self._bounds(np.bincount(rows, lengths).astype(np.int64)).max())
        self.max_sequence_length, self.group_size = source.max_length, self.unit_size
        if isinstance(source, GroupedSequences):
            self.max_sequence_length = source.max_sequence_length
            self.group_size *= source.group_size
        self.shuffle = Shuffle()
        self.facts: SplitFacts = replace(getattr(source, "facts", SplitFacts(len(rows))), units={})

    def __len__(self) -> int:
        """Number of units."""
        return len(self._unit_sizes)

    @property
    def fingerprint(self) -> str:
        """Identifies the items and the units."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self._row_sizes, self._order, self._unit_sizes, np.array([self._most_rows])):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return f"{self.source.fingerprint} {digest.hexdigest()}"

    @property
    def mean_length(self) -> float:
        """Mean tokens of a unit in a step, over a fixed sample of the units."""
        units = np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(np.int64))
        return float(self.lengths(np.zeros_like(units), units).mean())

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing: units of a Poisson sample are not adjacent."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (units,) int64 tokens of each unit in a step."""
        items, sizes = self._items(epochs, indices)
        bounds = ragged.bounds(self.source.lengths(np.repeat(epochs, sizes), items))
        return np.diff(bounds[ragged.bounds(sizes)])

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch; its sequences are units."""
        items, sizes = self._items(sequences.epochs, sequences.indices)
        ids = np.repeat(sequences.sequence_ids, sizes) * self.unit_size + ragged.offsets_within(sizes)
        chosen = StepSequences(np.repeat(sequences.epochs, sizes), items, ids)
        return replace(self.source.build(chosen, step, shape), unit_size=self.unit_size)

    def _items(self, epochs: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items of units, and the number of items of each unit."""
        sizes = self._unit_sizes[indices]
        counts = np.minimum(sizes, self._most_rows)
        offsets = ragged.ranges(epochs * counts, counts) % np.repeat(sizes, counts)
        rows = self._order[np.repeat(self._unit_starts[indices], counts) + offsets]
        num_items = self._row_sizes[rows]
        return (
            ragged.ranges(self._row_starts[rows], num_items),
            np.diff(ragged.bounds(num_items)[ragged.bounds(counts)]),
        )

    def _bounds(self, values: np.ndarray) -> np.ndarray:
        """Returns an upper bound (units,) of the sum of values (rows,) over the rows of each unit in a step."""
        units = np.repeat(np.arange(len(self)), self._unit_sizes)
        own = values[self._order]
        # Rows of each unit, the largest value first.
        order = np.lexsort((-own, units))
        is_counted = ragged.offsets_within(self._unit_sizes) < self._most_rows
        return np.bincount(units, own[order] * is_counted, minlength=len(self)).astype(np.int64)
