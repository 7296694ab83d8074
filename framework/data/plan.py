"""Who computes what in which step: the sequences of a global step, and their way to ranks and micro-batches.

A plan is arithmetic over (seed, step): it has no state, so that any step can be asked for at any time, and the
sequences of a step do not depend on ranks, budgets or workers. Building batches from sequences is the source's work.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from framework.batch import PackedBatch
from framework.data.collate import Capacity
from framework.data.order import permute
from framework.errors import ConfigError
from framework.random import key


class SequenceSource(Protocol):
    """The sequences of one split. All methods are pure functions of their arguments, for whole arrays at once.

    Attributes:
        max_length: Tokens that no sequence of this source exceeds, special tokens included.
    """

    max_length: int

    def __len__(self) -> int:
        """Number of sequences in an epoch."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Tokens of sequences, special tokens included, without building them.

        Args:
            epochs: (sequences,) int64, the epoch in which each is seen (a step may cross an epoch end).
            indices: (sequences,) int64 in [0, len).

        Returns:
            (sequences,) int64, all positive.
        """

    def build(
        self,
        epochs: np.ndarray,
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,
        capacity: Capacity | None = None,
    ) -> PackedBatch:
        """Builds one micro-batch with the sequences in the given order (`framework.data.collate.pack_sequences`).

        Args:
            epochs: (sequences,) int64.
            indices: (sequences,) int64.
            sequence_ids: (sequences,) int64, place of each in the run's stream of sequences.
            step: Optimizer steps completed before this one, for what follows a schedule (the mask rate).
            capacity: Fixed shapes; None leaves them as the content has them.

        Returns:
            The micro-batch. Empty arrays give one dummy sequence of length 1 (or a capacity full of dummies), counts
            zero.
        """


@dataclass(frozen=True, slots=True)
class StepSequences:
    """Sequences of a step, or a micro-batch's share of them.

    Attributes:
        epochs: (sequences,) int64.
        indices: (sequences,) int64, which sequence of the source.
        sequence_ids: (sequences,) int64, place in the run's stream of sequences, unique over the run.
    """

    epochs: np.ndarray
    indices: np.ndarray
    sequence_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, slots: np.ndarray) -> "StepSequences":
        """The sequences at these places of the step."""
        return StepSequences(self.epochs[slots], self.indices[slots], self.sequence_ids[slots])


def steps_per_epoch(num_sequences: int, global_batch_size: int) -> int:
    """Steps in which every sequence is seen once, the last one perhaps short (or shared with the next epoch)."""
    return -(-num_sequences // global_batch_size)


class StepPlan:
    """Splits a source into global steps, and each step evenly over ranks and micro-batches.

    Args:
        source: The sequences of one split.
        seed: Seed of the run; the order of an epoch is a function of it and the epoch.
        global_batch_size: Sequences of a step over all ranks.
        micro_batch_tokens: Token budget of a micro-batch; no sequence may be longer.
        num_ranks: Data-parallel ranks.
        wraps_epochs: True: the stream of epochs is cut into equal steps, which may cross an epoch end. False: an epoch
            ends with a short step.
        shuffle: False keeps the source's order in every epoch (evaluation).
        micro_batch_sequences: Most sequences of a micro-batch, where shapes are fixed; None is no limit.

    Raises:
        ConfigError: A size below 1, a source without sequences, or a budget below the source's longest sequence.
    """

    def __init__(
        self,
        source: SequenceSource,
        seed: int,
        global_batch_size: int,
        micro_batch_tokens: int,
        num_ranks: int = 1,
        wraps_epochs: bool = False,
        shuffle: bool = True,
        micro_batch_sequences: int | None = None,
    ) -> None:
        sizes = {"global_batch_size": global_batch_size, "num_ranks": num_ranks}
        if micro_batch_sequences is not None:
            sizes["micro_batch_sequences"] = micro_batch_sequences
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}, it must be at least 1.")
        if len(source) < 1:
            raise ConfigError(
                "the split has 0 sequences, a step needs at least 1; check the data's filters and fractions."
            )
        if micro_batch_tokens < source.max_length:
            raise ConfigError(
                f"micro_batch_tokens is {micro_batch_tokens}, but one sequence may have {source.max_length} tokens and "
                f"cannot be split; set micro_batch_tokens to at least {source.max_length} or shorten the sequences."
            )
        self.source = source
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.num_ranks = num_ranks
        self.wraps_epochs = wraps_epochs
        self.shuffle = shuffle
        self.micro_batch_sequences = micro_batch_sequences

    def __len__(self) -> int:
        """Steps of one epoch."""
        return self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every sequence is seen once."""
        return steps_per_epoch(len(self.source), self.global_batch_size)

    def epoch(self, step: int) -> int:
        """Epoch of a step's first sequence, counted from 0."""
        if self.wraps_epochs:
            return step * self.global_batch_size // len(self.source)
        return step // self.steps_per_epoch

    def sequences(self, step: int) -> StepSequences:
        """The sequences of a global step in their order: the same at any number of ranks, budget and workers."""
        size = len(self.source)
        if self.wraps_epochs:
            first = step * self.global_batch_size
            last = first + self.global_batch_size
        else:
            epoch = self.epoch(step)
            step_in_epoch = step - epoch * self.steps_per_epoch
            first = epoch * size + step_in_epoch * self.global_batch_size
            last = min(first + self.global_batch_size, (epoch + 1) * size)
        sequence_ids = np.arange(first, last, dtype=np.int64)
        epochs, indices = np.divmod(sequence_ids, size)
        if self.shuffle:
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                here = epochs == epoch
                indices[here] = permute(key(self.seed, "order", epoch), size, indices[here])
        return StepSequences(epochs, indices, sequence_ids)

    def micro_batches(self, step: int, rank: int) -> list[StepSequences]:
        """A rank's micro-batches of a step: the same number on every rank, perhaps without sequences."""
        sequences = self.sequences(step)
        shares = self._spread(sequences)[rank]
        return [sequences.take(slots) for slots in shares]

    def efficiency(self, steps: Iterable[int]) -> float:
        """Packing efficiency over steps: real tokens / (micro-batches x budget x ranks)."""
        real = room = 0
        for step in steps:
            sequences = self.sequences(step)
            real += int(self.source.lengths(sequences.epochs, sequences.indices).sum())
            room += len(self._spread(sequences)[0]) * self.micro_batch_tokens * self.num_ranks
        return real / room

    def _spread(self, sequences: StepSequences) -> list[list[np.ndarray]]:
        lengths = self.source.lengths(sequences.epochs, sequences.indices)
        most = self.micro_batch_sequences or len(lengths)
        return spread_evenly(lengths, self.micro_batch_tokens, self.num_ranks, most)


def spread_evenly(lengths: np.ndarray, budget: int, num_ranks: int, max_sequences: int) -> list[list[np.ndarray]]:
    """Spreads sequences over ranks, and over as few micro-batches a rank as the budget allows, with even tokens.

    Best fit, longest first, tells how many micro-batches are needed. Then each sequence, longest first, goes to the
    emptiest micro-batch of all ranks; where that overflows a tight budget, best fit is repeated with ever lower budgets
    as long as it needs no more micro-batches (MULTIFIT: Coffman, Garey, Johnson 1978).

    Args:
        lengths: (sequences,) tokens of each, none above the budget.
        budget: Most tokens of a micro-batch.
        num_ranks: Ranks.
        max_sequences: Most sequences of a micro-batch.

    Returns:
        For each rank its micro-batches, fullest first, as ascending int64 places into `lengths`; all ranks have equally
        many.

    Raises:
        ConfigError: A sequence is longer than the budget.
    """
    if len(lengths) and lengths.max() > budget:
        raise ConfigError(
            f"a sequence has {lengths.max()} tokens, above micro_batch_tokens={budget}; set micro_batch_tokens to at "
            f"least {lengths.max()} or shorten the sequences."
        )
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    bins = _best_fit(order, sizes, budget, max_sequences)
    num_bins = -(-len(bins) // num_ranks) * num_ranks
    even = _emptiest_first(order, sizes, num_bins, max_sequences)
    if max(sum(sizes[slot] for slot in members) for members in even) <= budget:
        bins = even
    else:
        lowest = -(-sum(sizes) // num_bins)
        while budget - lowest > 1:
            middle = (lowest + budget) // 2
            tighter = _best_fit(order, sizes, middle, max_sequences)
            if len(tighter) <= num_bins:
                bins, budget = tighter, middle
            else:
                lowest = middle
    bins = bins + [[] for _ in range(num_bins - len(bins))]
    return _deal(bins, sizes, num_ranks)


def _best_fit(order: list[int], sizes: list[int], budget: int, max_sequences: int) -> list[list[int]]:
    """Puts each sequence into the fullest micro-batch that can take it, opening new ones as needed."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for slot in order:
        place = bisect_left(room, (sizes[slot], -1))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = budget, len(bins)
            bins.append([])
        bins[number].append(slot)
        if len(bins[number]) < max_sequences:
            insort(room, (free - sizes[slot], number))
    return bins


def _emptiest_first(order: list[int], sizes: list[int], num_bins: int, max_sequences: int) -> list[list[int]]:
    """Puts each sequence into the emptiest of a fixed number of micro-batches, whatever the budget is."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, number) for number in range(num_bins)]
    for slot in order:
        tokens, number = heap[0]
        bins[number].append(slot)
        if len(bins[number]) < max_sequences:
            heapq.heapreplace(heap, (tokens + sizes[slot], number))
        else:
            heapq.heappop(heap)
    return bins


def _deal(bins: list[list[int]], sizes: list[int], num_ranks: int) -> list[list[np.ndarray]]:
    """Deals micro-batches of like size to the ranks round by round, the fullest of a round to the emptiest rank."""
    loads = [sum(sizes[slot] for slot in members) for members in bins]
    by_load = sorted(range(len(bins)), key=lambda number: (-loads[number], number))
    ranks: list[list[np.ndarray]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for first in range(0, len(by_load), num_ranks):
        emptiest = sorted(range(num_ranks), key=lambda rank: (totals[rank], rank))
        for rank, number in zip(emptiest, by_load[first : first + num_ranks], strict=True):
            ranks[rank].append(np.array(sorted(bins[number]), dtype=np.int64))
            totals[rank] += loads[number]
    return ranks
