"""Who computes what in which step: the sequences of a global step, and their way to ranks and micro-batches.

A plan is arithmetic over (seed, step): it has no state, so that any step can be asked for at any time, and the
sequences of a step do not depend on ranks, budgets or workers. How they are packed is in `packing`;
building batches from them is the source's work.
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
from framework.errors import ConfigError
from framework.random import key


class SequenceSource(Protocol):
    """The sequences of one split. All methods are pure functions of their arguments, for whole arrays at once.

    Attributes:
        max_length: Tokens that no sequence of this source exceeds, special tokens included.
        shuffle: The order of an epoch.
    """

    max_length: int
    shuffle: Shuffle

    @property
    def fingerprint(self) -> str:
        """Differs where other sequences would come, whatever the seed."""

    @property
    def mean_length(self) -> float:
        """Mean tokens of the sequences, special tokens included, over all or over a fixed sample of them."""

    def __len__(self) -> int:
        """Number of sequences in an epoch."""

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Is told that the sequences from index `start` up to `stop` of an epoch will be built soon."""

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
        shape: Shape = None,
    ) -> PackedBatch:
        """Builds one micro-batch with the sequences in the given order (`planning.collate.pack_sequences`).

        Args:
            epochs: (sequences,) int64.
            indices: (sequences,) int64.
            sequence_ids: (sequences,) int64, place of each in the run's stream of sequences.
            step: Optimizer steps completed before this one, for what follows a schedule (the mask rate).
            shape: What the content is completed to; None leaves its shapes free.

        Returns:
            The micro-batch. Empty arrays give one dummy sequence of length 1 (or a shape full of dummies), counts
            zero.
        """


@runtime_checkable
class UnusedText(Protocol):
    """What a source has beside, whose epochs leave text out."""

    def unused_fraction(self, epoch: int) -> float:
        """Share of the text that an epoch leaves out, over all or over a fixed sample of the sequences."""


@runtime_checkable
class GroupedSequences(Protocol):
    """What a source has beside, whose items may hold several sequences: all of SequenceSource then counts items.

    Attributes:
        group_size: Most sequences of an item.
        max_sequence_length: Tokens that no sequence exceeds, where `max_length` speaks of items.
    """

    group_size: int
    max_sequence_length: int


@dataclass(frozen=True, slots=True)
class StepSequences:
    """Sequences of a step.

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


@dataclass(frozen=True, slots=True)
class MicroBatch(StepSequences):
    """A micro-batch's share of a step.

    Attributes:
        budget: Most tokens that it may have; one of `StepPlan.budgets`.
        shape: What it is filled up to; None: its shapes are free.
    """

    budget: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What some steps of a plan look like.

    Attributes:
        sequences: Fewest and most of a step.
        micro_batches: Fewest and most of a rank in a step.
        last_budgets: Ascending budgets that the last micro-batch of a rank has.
        efficiency: Packing efficiency: real tokens / budgets of all micro-batches of all ranks.
    """

    sequences: tuple[int, int]
    micro_batches: tuple[int, int]
    last_budgets: tuple[int, ...]
    efficiency: float


def steps_per_epoch(num_sequences: int, global_batch_size: int) -> int:
    """Steps of full size in which every sequence is seen once, the last one perhaps short or shared with the next."""
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
        shapes: What micro-batches are completed to.
        batch_warmup: How the global batch grows at the beginning; None: it does not.

    Raises:
        ConfigError: A size below 1, a source without sequences, a budget below the source's longest sequence, or a
            batch that grows in steps that do not run across epoch ends or begins above its full size.
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
        sizes = {"global_batch_size": global_batch_size, "num_ranks": num_ranks}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}, it must be at least 1.")
        if len(source) < 1:
            raise ConfigError(
                "the split has 0 sequences, a step needs at least 1; check the data's filters and fractions."
            )
        if batch_warmup is not None and not wraps_epochs:
            raise ConfigError(
                f"batch_warmup_steps is {batch_warmup.steps}, but here each epoch ends with a step of its own, so that "
                "the batch cannot grow across epochs; set trainer.batch_warmup_start and trainer.batch_warmup_steps to "
                "null."
            )
        if batch_warmup is not None and batch_warmup.start > global_batch_size:
            raise ConfigError(
                f"batch_warmup_start is {batch_warmup.start}, but the batch grows to {global_batch_size} sequences; "
                f"set trainer.batch_warmup_start to at most {global_batch_size}."
            )
        self.source = source
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.num_ranks = num_ranks
        self.wraps_epochs = wraps_epochs
        self.shuffle = shuffle
        self.batch_warmup = batch_warmup
        self.set_budget(micro_batch_tokens, shapes)

    def set_budget(self, micro_batch_tokens: int, shapes: Shapes = None) -> None:
        """Changes how steps are split, not what is in them; before loaders are made, since they may copy the plan.

        Raises:
            ConfigError: The budget is below the source's longest sequence.
        """
        longest = self.source.max_length
        if micro_batch_tokens < longest:
            raise ConfigError(
                f"micro_batch_tokens is {micro_batch_tokens}, but one sequence may have {longest} tokens and "
                f"cannot be split; set micro_batch_tokens to at least {longest} or shorten the sequences."
            )
        self.micro_batch_tokens = micro_batch_tokens
        self.shapes = shapes
        self.budgets = (
            list(shapes.by_budget) if isinstance(shapes, FixedShapes) else budget_sizes(micro_batch_tokens, longest)
        )

    def __len__(self) -> int:
        """Steps of one epoch."""
        return self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of full size in which every sequence is seen once."""
        return steps_per_epoch(len(self.source), self.global_batch_size)

    def epoch(self, step: int) -> int:
        """Epoch of a step's first sequence, counted from 0."""
        if self.wraps_epochs:
            return self._sequences_before(step) // len(self.source)
        return step // self.steps_per_epoch

    def sequences(self, step: int) -> StepSequences:
        """The sequences of a global step in their order: the same at any number of ranks, budget and workers."""
        size, stream = len(self.source), self._stream(step)
        sequence_ids = np.arange(stream.start, stream.stop, dtype=np.int64)
        epochs, indices = np.divmod(sequence_ids, size)
        if self.shuffle:
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                here = epochs == epoch
                indices[here] = self.source.shuffle.indices(key(self.seed, "order", epoch), size, indices[here])
        return StepSequences(epochs, indices, sequence_ids)

    def windows(self, step: int) -> list[tuple[int, np.ndarray]]:
        """What to read ahead: the window of the order in which the step ends, and the one after it in the same epoch.

        Returns:
            (epoch, ranges (blocks, 2) of sequence indices) of each window; nothing where the order has no windows.
        """
        order, size = self.source.shuffle, len(self.source)
        if order.block_size is None or not self.shuffle:
            return []
        epoch, position = divmod(self._stream(step).stop - 1, size)
        order_key = key(self.seed, "order", epoch)
        following = min(position + order.block_size * order.window_blocks, size - 1)
        return [(epoch, order.window(order_key, size, place)) for place in (position, following)]

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """A rank's micro-batches of a step: the same number and budgets on every rank, perhaps without sequences."""
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

    def batches(self, step: int, rank: int) -> Iterator[PackedBatch]:
        """Builds a rank's micro-batches of a step, one at a time (see `micro_batches`)."""
        for share in self.micro_batches(step, rank):
            yield self.source.build(share.epochs, share.indices, share.sequence_ids, step, share.shape)

    def summary(self, steps: Iterable[int]) -> PlanSummary:
        """Measures some steps, at least one, over all ranks."""
        planned = [self._pack(self.sequences(step)) for step in steps]
        sizes = [len(packing.places) for _, packing in planned]
        counts = [len(packing.budgets) for _, packing in planned]
        room = sum(sum(packing.budgets) for _, packing in planned) * self.num_ranks
        return PlanSummary(
            sequences=(min(sizes), max(sizes)),
            micro_batches=(min(counts), max(counts)),
            last_budgets=tuple(sorted({packing.budgets[-1] for _, packing in planned})),
            efficiency=sum(int(lengths.sum()) for lengths, _ in planned) / room,
        )

    def rank_tokens(self, num_steps: int) -> np.ndarray:
        """(steps,) mean tokens of a rank in steps spread evenly over the first epoch, at most so many."""
        count = min(num_steps, self.steps_per_epoch)
        drawn = [self.sequences(place * self.steps_per_epoch // count) for place in range(count)]
        totals = [self.source.lengths(sequences.epochs, sequences.indices).sum() for sequences in drawn]
        return np.array(totals) / self.num_ranks

    def _stream(self, step: int) -> range:
        """The places of a step's sequences in the run's stream of epochs."""
        if self.wraps_epochs:
            return range(self._sequences_before(step), self._sequences_before(step + 1))
        size, epoch = len(self.source), self.epoch(step)
        first = epoch * size + (step - epoch * self.steps_per_epoch) * self.global_batch_size
        return range(first, min(first + self.global_batch_size, (epoch + 1) * size))

    def _sequences_before(self, step: int) -> int:
        return sequences_before(step, self.global_batch_size, self.batch_warmup)

    def _pack(self, sequences: StepSequences) -> tuple[np.ndarray, Packing]:
        """Lengths of the sequences of a step, and the micro-batch of each."""
        lengths = self.source.lengths(sequences.epochs, sequences.indices)
        most = self.shapes.micro_batch_sequences if isinstance(self.shapes, FixedShapes) else len(lengths)
        return lengths, pack(lengths, self.budgets, self.num_ranks, most)
