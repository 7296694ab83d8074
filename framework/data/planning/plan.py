"""Plan of a run: the sequences of each global step, and their split over ranks and micro-batches.

A plan is arithmetic over (seed, step) without state. Any step can be computed at any time, and its sequences do not
depend on ranks, budgets or workers. `packing` packs them into micro-batches, and the source builds the batches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from framework.batch import PackedBatch
from framework.data.planning.batch_size import BatchWarmup, sequences_before
from framework.data.planning.collate import Shape
from framework.data.planning.fixed_shapes import FixedShapes, Shapes
from framework.data.planning.order import Shuffle
from framework.data.planning.packing import Packing, budget_sizes, pack
from framework.errors import ConfigError, check_at_least
from framework.random import key

_AHEAD = 4096
"""Positions of an epoch that are shuffled at once. Those of a small step alone take almost as long."""


@dataclass(frozen=True, slots=True)
class StepSequences:
    """Sequences of a step, or some of them.

    Attributes:
        epochs: (sequences,) int64 epoch of each sequence.
        indices: (sequences,) int64 index of each sequence in the source.
        sequence_ids: (sequences,) int64 position of each in the run's stream of sequences, unique over the run.
    """

    epochs: np.ndarray
    indices: np.ndarray
    sequence_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


class SequenceSource(Protocol):
    """Sequences of one split. All methods are pure functions of their arguments and process whole arrays.

    Attributes:
        max_length: Upper bound of the tokens of a sequence, special tokens included.
        shuffle: Order of an epoch.
    """

    max_length: int
    shuffle: Shuffle

    @property
    def fingerprint(self) -> str:
        """Identifies the sequences, independent of the seed; it changes if any sequence changes."""

    @property
    def mean_length(self) -> float:
        """Mean tokens of a sequence, special tokens included, over all sequences or over a fixed sample of them."""

    def __len__(self) -> int:
        """Number of sequences in an epoch."""

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Prefetches the sequences with indices `start` to `stop` (exclusive) of an epoch, which are built soon."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns the tokens of sequences, special tokens included, without building them.

        Args:
            epochs: (sequences,) int64 epoch of each sequence (a step may cross an epoch end).
            indices: (sequences,) int64 index of each sequence, in [0, len).

        Returns:
            (sequences,) int64 lengths, all positive.
        """

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch with the sequences in the given order (`planning.collate.pack_sequences`).

        Args:
            sequences: Sequences of the micro-batch.
            step: Optimizer steps completed before this one, for scheduled values such as the mask rate.
            shape: Shape to which the micro-batch is padded; None adds no padding.

        Returns:
            The micro-batch. No sequences give one dummy sequence of length 1 (or a shape full of dummies) and counts
            of zero.
        """


@runtime_checkable
class UnusedText(Protocol):
    """Additional method of a source whose epochs omit text."""

    def unused_fraction(self, epoch: int) -> float:
        """Returns the share of the text that an epoch omits, over all sequences or over a fixed sample of them."""


@runtime_checkable
class ChosenTargets(Protocol):
    """Additional method of a source whose targets are chosen tokens, so that their number is not that of tokens."""

    def most_targets(self, tokens: int, sequences: int) -> int:
        """Returns the number of targets that a micro-batch of this many tokens and sequences exceeds rarely or never.

        Args:
            tokens: Real tokens of a micro-batch.
            sequences: Real sequences of a micro-batch.
        """


@runtime_checkable
class GroupedSequences(Protocol):
    """Additional attributes of a source whose items may hold several sequences. SequenceSource then counts items.

    Attributes:
        group_size: Most sequences of an item.
        max_sequence_length: Upper bound of the tokens of a sequence; `max_length` is that of an item.
    """

    group_size: int
    max_sequence_length: int


@dataclass(frozen=True, slots=True)
class MicroBatch(StepSequences):
    """Sequences of a step that form one micro-batch.

    Attributes:
        budget: Most tokens of the micro-batch; one of `StepPlan.budgets`.
        shape: Shape to which the micro-batch is padded; None adds no padding.
    """

    budget: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """Statistics of some steps of a plan.

    Attributes:
        sequences: Minimum and maximum number of sequences of a step.
        micro_batches: Minimum and maximum number of micro-batches of a rank in a step.
        last_budgets: Budgets of the last micro-batch of a rank, ascending.
        efficiency: Packing efficiency: real tokens / budgets of all micro-batches of all ranks.
    """

    sequences: tuple[int, int]
    micro_batches: tuple[int, int]
    last_budgets: tuple[int, ...]
    efficiency: float


def steps_per_epoch(num_sequences: int, global_batch_size: int) -> int:
    """Returns the number of steps of full size that cover every sequence once.

    The last step may be short or extend into the next epoch.
    """
    return -(-num_sequences // global_batch_size)


class StepPlan:
    """Splits a source into global steps, and each step evenly over ranks and micro-batches.

    Args:
        source: Sequences of one split.
        seed: Seed of the run; it determines the order of each epoch together with the epoch's number.
        global_batch_size: Sequences of a step over all ranks.
        micro_batch_tokens: Token budget of a micro-batch; no sequence may be longer.
        num_ranks: Data-parallel ranks.
        wraps_epochs: True cuts the stream of epochs into equal steps, which may cross an epoch end. False ends each
            epoch with a short step.
        shuffle: Shuffling of each epoch; False keeps the source's order (evaluation).
        shapes: Shapes to which micro-batches are padded.
        batch_warmup: Growth of the global batch at the beginning; None keeps its size constant.

    Attributes:
        first_step: Step of the run at which the plan begins, for a phase that follows others. Epochs, the growth of the
            batch and the stream of sequences count from it.

    Raises:
        ConfigError: A size is below 1, the source has no sequences, the budget is below the source's longest sequence,
            or `batch_warmup` is given without `wraps_epochs` or starts above `global_batch_size`.
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
        shapes: Shapes = None,
        batch_warmup: BatchWarmup | None = None,
    ) -> None:
        check_at_least("global_batch_size", global_batch_size, 1)
        check_at_least("num_ranks", num_ranks, 1)
        if len(source) < 1:
            raise ConfigError(
                "the split has 0 sequences. A step requires at least 1. Check the data's filters and fractions."
            )
        if batch_warmup is not None and not wraps_epochs:
            raise ConfigError(
                f"batch_warmup_steps is {batch_warmup.steps}, but each epoch of this task ends with a short step. The "
                "batch can grow only if steps cross epoch ends. Set trainer.batch_warmup_start and "
                "trainer.batch_warmup_steps to null."
            )
        if batch_warmup is not None and batch_warmup.start > global_batch_size:
            raise ConfigError(
                f"batch_warmup_start is {batch_warmup.start}, but the batch grows to {global_batch_size} sequences. "
                "The start must not exceed the full size. Set trainer.batch_warmup_start to at most "
                f"{global_batch_size}."
            )
        self.source = source
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.num_ranks = num_ranks
        self.wraps_epochs = wraps_epochs
        self.shuffle = shuffle
        self.batch_warmup = batch_warmup
        self.first_step = 0
        self._order = source.shuffle.for_steps(global_batch_size) if shuffle else source.shuffle
        self._shuffled = (-1, 0, np.zeros(0, dtype=np.int64))  # epoch, first position, indices
        self.set_budget(micro_batch_tokens, shapes)

    def set_budget(self, micro_batch_tokens: int, shapes: Shapes = None) -> None:
        """Changes the split of steps into micro-batches, not the sequences of a step.

        Call it before loaders are created, since they may copy the plan.

        Raises:
            ConfigError: The budget is below the source's longest sequence.
        """
        longest = self.source.max_length
        if micro_batch_tokens < longest:
            raise ConfigError(
                f"micro_batch_tokens is {micro_batch_tokens}, but one sequence may have {longest} tokens. A sequence "
                f"cannot be split. Set micro_batch_tokens to at least {longest} or shorten the sequences."
            )
        self.micro_batch_tokens = micro_batch_tokens
        self.shapes = shapes
        self.budgets = (
            list(shapes.by_budget) if isinstance(shapes, FixedShapes) else budget_sizes(micro_batch_tokens, longest)
        )

    def __len__(self) -> int:
        """Returns the number of steps of one epoch."""
        return self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of full size that cover every sequence once."""
        return steps_per_epoch(len(self.source), self.global_batch_size)

    def epoch(self, step: int) -> int:
        """Returns the epoch of a step's first sequence, counted from 0."""
        if self.wraps_epochs:
            return self._sequences_before(step) // len(self.source)
        return (step - self.first_step) // self.steps_per_epoch

    def epochs_until(self, step: int) -> float:
        """Returns the passes over the source that the plan makes up to a step, for plans whose steps cross epochs."""
        return self._sequences_before(step) / len(self.source)

    def sequences(self, step: int) -> StepSequences:
        """Returns the ordered sequences of a global step, which do not depend on ranks, budget or workers."""
        size, stream = len(self.source), self._stream(step)
        sequence_ids = np.arange(stream.start, stream.stop, dtype=np.int64)
        epochs, indices = np.divmod(sequence_ids, size)
        if self.shuffle:
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                in_epoch = epochs == epoch
                indices[in_epoch] = self._indices(epoch, indices[in_epoch])
        return StepSequences(epochs, indices, sequence_ids)

    def windows(self, step: int) -> list[tuple[int, np.ndarray]]:
        """Returns the windows to prefetch: the one in which the step ends, and the next one in the same epoch.

        Returns:
            (epoch, ranges (blocks, 2) of sequence indices) of each window; an empty list if the order has no windows.
        """
        order, size = self.source.shuffle, len(self.source)
        if order.block_size is None or not self.shuffle:
            return []
        epoch, position = divmod(self._stream(step).stop - 1, size)
        order_key = key(self.seed, "order", epoch)
        following = min(position + order.block_size * order.window_blocks, size - 1)
        return [(epoch, order.window(order_key, size, inside)) for inside in (position, following)]

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """Returns a rank's micro-batches of a step.

        All ranks have the same number of micro-batches with the same budgets. A micro-batch may have no sequences.
        """
        sequences = self.sequences(step)
        _, packing = self._pack(sequences)
        return [
            MicroBatch(
                sequences.epochs[slots],
                sequences.indices[slots],
                sequences.sequence_ids[slots],
                budget,
                self.shapes.by_budget[budget] if isinstance(self.shapes, FixedShapes) else self.shapes,
            )
            for slots, budget in zip(packing.of_rank(rank), packing.budgets, strict=True)
        ]

    def fullest_rank(self, step: int) -> int:
        """Returns the rank whose largest micro-batch of a step has the most tokens."""
        lengths, packing = self._pack(self.sequences(step))
        return packing.fullest_rank(lengths)

    def batches(self, step: int, rank: int) -> Iterator[PackedBatch]:
        """Builds a rank's micro-batches of a step, one at a time (see `micro_batches`)."""
        for share in self.micro_batches(step, rank):
            yield self.source.build(share, step, share.shape)

    def summary(self, steps: Iterable[int]) -> PlanSummary:
        """Computes statistics of some steps, at least one, over all ranks."""
        planned = [self._pack(self.sequences(step)) for step in steps]
        sizes = [len(packing.assignment) for _, packing in planned]
        counts = [len(packing.budgets) for _, packing in planned]
        room = sum(sum(packing.budgets) for _, packing in planned) * self.num_ranks
        return PlanSummary(
            sequences=(min(sizes), max(sizes)),
            micro_batches=(min(counts), max(counts)),
            last_budgets=tuple(sorted({packing.budgets[-1] for _, packing in planned})),
            efficiency=sum(int(lengths.sum()) for lengths, _ in planned) / room,
        )

    def rank_tokens(self, num_steps: int) -> np.ndarray:
        """Returns (steps,) mean tokens of a rank in at most `num_steps` steps, spread evenly over the first epoch."""
        count = min(num_steps, self.steps_per_epoch)
        steps = (self.first_step + number * self.steps_per_epoch // count for number in range(count))
        sampled = [self.sequences(step) for step in steps]
        totals = [self.source.lengths(sequences.epochs, sequences.indices).sum() for sequences in sampled]
        return np.array(totals) / self.num_ranks

    def _indices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Returns the indices at consecutive positions in the order of an epoch."""
        first, stop = int(positions[0]), int(positions[-1]) + 1
        shuffled_epoch, start, indices = self._shuffled
        if epoch != shuffled_epoch or first < start or stop > start + len(indices):
            size, start = len(self.source), first
            ahead = np.arange(first, max(stop, min(first + _AHEAD, size)), dtype=np.int64)
            indices = self._order.indices(key(self.seed, "order", epoch), size, ahead)
            self._shuffled = epoch, start, indices
        return indices[first - start : stop - start]

    def _stream(self, step: int) -> range:
        """Returns the positions of a step's sequences in the run's stream of sequences."""
        if self.wraps_epochs:
            return range(self._sequences_before(step), self._sequences_before(step + 1))
        size, epoch = len(self.source), self.epoch(step)
        within = step - self.first_step - epoch * self.steps_per_epoch
        first = epoch * size + within * self.global_batch_size
        return range(first, min(first + self.global_batch_size, (epoch + 1) * size))

    def _sequences_before(self, step: int) -> int:
        return sequences_before(step - self.first_step, self.global_batch_size, self.batch_warmup)

    def _pack(self, sequences: StepSequences) -> tuple[np.ndarray, Packing]:
        """Packs the sequences of a step; returns their lengths and the packing."""
        lengths = self.source.lengths(sequences.epochs, sequences.indices)
        most = self.shapes.micro_batch_sequences if isinstance(self.shapes, FixedShapes) else len(lengths)
        return lengths, pack(lengths, self.budgets, self.num_ranks, most)
