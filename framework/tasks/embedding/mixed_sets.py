"""Items of several data sets. A training step reads one set. Each set has a share of the steps, and an objective."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import StepSequences
from framework.data.planning.set_order import SetShuffle
from framework.tasks.embedding.features import DrawnPairs
from framework.tasks.embedding.search_sets import SearchSource

OBJECTIVES = "objectives"
"""Target with the index of the objective of each sequence."""

NO_OBJECTIVE = -1

_DTYPES = {"queries": np.int64, "texts": np.int64, "scores": np.float32}


Source = FlatSource | DrawnPairs | SearchSource


class JoinedSets:
    """Items of several sets, one set after the other (a `SequenceSource`).

    Args:
        sources: Source of each set by name; the first is the data itself.
        objectives: Index of the objective of each set; NO_OBJECTIVE: its texts have no loss.
    """

    def __init__(self, sources: Mapping[str, Source], objectives: Sequence[int]) -> None:
        self.sources = dict(sources)
        self.objectives = objectives
        self.shuffle = Shuffle()
        self.max_length = max(source.max_length for source in sources.values())
        self.max_sequence_length = max(source.max_sequence_length for source in sources.values())
        self.group_size = max(source.group_size for source in sources.values())
        for source in sources.values():
            source.group_size = self.group_size
        sizes = {name: len(source) for name, source in sources.items()}
        self._starts = np.cumsum([0, *sizes.values()])
        facts = next(iter(sources.values())).facts
        notes = {f"items of {name}": f"{size:,}" for name, size in list(sizes.items())[1:]}
        self.facts = replace(facts, notes={**facts.notes, **notes})

    def __len__(self) -> int:
        return int(self._starts[-1])

    def items(self, name: str) -> slice:
        """Returns the range of the items of a set."""
        index = list(self.sources).index(name)
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprints of all sets."""
        return " ".join(source.fingerprint for source in self.sources.values())

    @property
    def mean_length(self) -> float:
        """Returns the mean number of tokens of an item, special tokens included."""
        return sum(source.mean_length * len(source) for source in self.sources.values()) / len(self)

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing: everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (items,) int64: tokens of each item, special tokens included."""
        lengths = np.zeros(len(indices), dtype=np.int64)
        sources = list(self.sources.values())
        for number, own, items in self._by_set(indices):
            lengths[own] = sources[number].lengths(epochs[own], items)
        return lengths

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch. All batches have the targets of all sets; those that a set lacks are 0."""
        sources = list(self.sources.values())
        parts: list[tuple[int, PackedBatch]] = []
        for number, own, items in self._by_set(sequences.indices):
            chosen = StepSequences(sequences.epochs[own], items, sequences.sequence_ids[own])
            parts.append((number, sources[number].build(chosen, step)))
        lengths = [length for _, batch in parts for length in batch.lengths]
        targets = {
            name: np.concatenate([np.zeros(0, dtype), *(_target(batch, name, dtype) for _, batch in parts)])
            for name, dtype in _DTYPES.items()
        }
        sizes = [batch.num_sequences for _, batch in parts]
        targets[OBJECTIVES] = np.repeat([self.objectives[number] for number, _ in parts], sizes).astype(np.int64)
        counts: dict[str, float] = {term: 0.0 for source in sources for term in _terms(source)}
        for _, batch in parts:
            for term, count in batch.counts.items():
                counts[term] += count
        packed = pack_sequences(
            np.concatenate([np.zeros(0, np.int64), *(batch.input_ids.numpy() for _, batch in parts)]),
            np.array(lengths, dtype=np.int64),
            np.concatenate([np.zeros(0, np.int64), *(batch.sequence_ids.numpy() for _, batch in parts)]),
            None,
            {name: Target(values, "sequences") for name, values in targets.items()},
            counts,
            shape,
        )
        return replace(packed, group_size=self.group_size)

    def _by_set(self, indices: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Returns for each set with items its number, the places of its items, and their indices in the set."""
        # Without a shuffle, an epoch may be longer than all sets.
        indices = indices % self._starts[-1]
        numbers = np.searchsorted(self._starts[1:], indices, side="right")
        found = ((int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers))
        return [(number, own, indices[own] - self._starts[number]) for number, own in found]


class MixedSets(JoinedSets):
    """Training items of several sets, of which each step reads one (`SetShuffle`).

    An epoch is as long as its steps of the first set need to run through that set once.

    Args:
        sources: Source of each set by name; the first is the data itself.
        objectives: Index of the objective of each set.
        shares: Share of the steps of each further set, in their order.
    """

    def __init__(self, sources: Mapping[str, Source], objectives: Sequence[int], shares: Sequence[float]) -> None:
        super().__init__(sources, objectives)
        sizes = [len(source) for source in sources.values()]
        self._shares = [1 - sum(shares), *shares]
        self.shuffle = SetShuffle(names=list(sources), sizes=sizes, shares=self._shares)
        notes = {f"steps of {name}": f"{share:.0%}" for name, share in zip(sources, self._shares, strict=True)}
        facts = next(iter(sources.values())).facts
        self.facts = replace(facts, notes={**facts.notes, **notes})
        self._length = round(sizes[0] / self._shares[0])

    def __len__(self) -> int:
        return self._length

    @property
    def mean_length(self) -> float:
        """Returns the mean number of tokens of an item of an epoch, special tokens included."""
        parts = zip(self._shares, self.sources.values(), strict=True)
        return sum(share * source.mean_length for share, source in parts)


def without_further(source: Any, values: Any) -> tuple[Any, Any]:
    """Returns the first of several sets, and the values of its items.

    Args:
        source: Items of one set or of several.
        values: Value of each item, as a sequence or an array.
    """
    if not isinstance(source, JoinedSets):
        return source, values
    name, first = next(iter(source.sources.items()))
    return first, values[source.items(name)]


def _target(batch: PackedBatch, name: str, dtype: Any) -> np.ndarray:
    if name in batch.targets:
        return batch.targets[name].numpy()[: batch.num_sequences].astype(dtype)
    return np.zeros(batch.num_sequences, dtype)


def _terms(source: Source) -> list[str]:
    """Returns the loss terms of a source: those of an empty micro-batch."""
    none = np.zeros(0, dtype=np.int64)
    return list(source.build(StepSequences(none, none, none), 0).counts)
