"""Loss of each item of a sample of a split, and the tokens by which equal items of two splits are found."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.flat_source import HeldItems
from framework.data.planning.collate import Shape
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.distributed.processes.agreement import check_agreement, gather
from framework.modules.inference import Inference
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import Task

_AT_ONCE = 4096

_DIGITS = 5
"""Significant digits of compared losses. The way in which rows are packed changes later digits."""


class ChosenItems(HeldItems):
    """A `SequenceSource` (`framework.data.planning.plan`) with some items of another one, as in its first epoch.

    Args:
        source: Source of the items.
        items: (items,) int64 indices of the items.
    """

    def __init__(self, source: SequenceSource, items: np.ndarray) -> None:
        super().__init__(source.lengths(np.zeros_like(items), items))
        self.max_length = source.max_length
        self.group_size = int(getattr(source, "group_size", 1))
        self._source = source
        self._items = items

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the source and a hash of the chosen indices."""
        return f"{self._source.fingerprint} {hashlib.blake2b(self._items.tobytes(), digest_size=16).hexdigest()}"

    @property
    def item_lengths(self) -> np.ndarray:
        """Returns (items,) int64, the number of tokens of each item."""
        return self._item_lengths

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch; its sequences are items."""
        chosen = StepSequences(sequences.epochs, self._items[sequences.indices], sequences.sequence_ids)
        return self._source.build(chosen, step, shape)


@dataclass(frozen=True)
class ItemLosses:
    """Losses of the items of a source.

    Attributes:
        losses: (items,) float64, rounded; NaN for an item without targets or with a loss that is not finite.
        labels: (items,) int64 index of the label in `Task.single_labels`; -1: none.
        lengths: (items,) int64 number of tokens.
    """

    losses: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray

    def finite(self) -> "ItemLosses":
        """Returns the items whose loss is finite."""
        kept = np.isfinite(self.losses)
        return ItemLosses(self.losses[kept], self.labels[kept], self.lengths[kept])


def has_item_losses(task: Task) -> bool:
    """Returns True if `item_losses` supports the task."""
    return isinstance(task, PretrainingTask) or type(task).sequence_losses is not Task.sequence_losses


def item_losses(inference: Inference, source: ChosenItems) -> ItemLosses:
    """Computes the loss of each item: `Task.sequence_losses`, or in pre-training the mean loss of its masked words.

    Collective: all ranks must call; they share the items.

    Args:
        inference: Model on its device.
        source: Items with their targets.

    Raises:
        DistributedError: Processes read different data.
    """
    check_agreement({"the fingerprint of the data": source.fingerprint})
    task = inference.task
    own: dict[int, tuple[float, int]] = {}
    for batch in inference.micro_batches(source):
        with torch.inference_mode(), inference.precision.autocast(inference.device.type):
            outputs = inference.model(batch)
        with torch.inference_mode():
            if isinstance(task, PretrainingTask):
                losses = masked_word_losses(outputs["mlm"], batch)
            else:
                # In fp32, losses below 1e-6 of a confident model have one or two digits, and many are equal.
                in_double = {name: each.double() for name, each in outputs.items()}
                losses = cast(Tensor, task.sequence_losses(in_double, batch))
            real = slice(batch.num_sequences)
            items = [each // batch.group_size for each in batch.sequence_ids[real].tolist()]
            labels = _labels(task, batch)
            for item, loss, label in zip(items, losses[real].double().tolist(), labels, strict=True):
                own[item] = (own.get(item, (0.0, label))[0] + loss, label)
    by_item = {item: each for part in gather(own) for item, each in part.items()}
    ordered = [by_item[item] for item in range(len(source))]
    found = np.array([float(f"{loss:.{_DIGITS - 1}e}") for loss, _ in ordered], dtype=np.float64)
    found[~np.isfinite(found)] = np.nan
    return ItemLosses(found, np.array([label for _, label in ordered], dtype=np.int64), source.item_lengths)


def masked_word_losses(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Returns the mean cross-entropy of the masked words of each sequence: (sequences,) float64, NaN without any.

    Args:
        logits: (targets, vocab).
        batch: Micro-batch with the targets mlm_positions and mlm_labels.
    """
    labels = batch.targets["mlm_labels"]
    is_target = labels != IGNORE_INDEX
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    ends = batch.cu_seqlens[1:].long()
    owners = torch.searchsorted(ends, batch.targets["mlm_positions"], right=True)[is_target]
    sums, counts = losses.new_zeros(len(ends)), losses.new_zeros(len(ends))
    sums.index_add_(0, owners, losses[is_target])
    counts.index_add_(0, owners, torch.ones_like(losses[is_target]))
    return sums / counts


def _labels(task: Task, batch: PackedBatch) -> list[int]:
    """Returns the index of the label of each real sequence; -1 if the task has no single labels."""
    labels = batch.targets.get("labels")
    if not task.single_labels or labels is None or labels.shape != batch.sequence_ids.shape:
        return [-1] * batch.num_sequences
    return [int(label) for label in labels[: batch.num_sequences].tolist()]


def items_of_both(training: SequenceSource, held_out: SequenceSource) -> np.ndarray:
    """Finds the items of a split whose tokens are those of a training item.

    Args:
        training: Split `train`.
        held_out: Other split.

    Returns:
        (items of held_out,) bool; True for an item that training contains too.
    """
    own = [tokens for chunk in _tokens(held_out) for tokens in chunk]
    wanted = set(own)
    seen: set[bytes] = set()
    for chunk in _tokens(training):
        seen.update(wanted.intersection(chunk))
    return np.array([tokens in seen for tokens in own], dtype=bool)


def _tokens(source: SequenceSource) -> Iterator[list[bytes]]:
    """Yields the ids of the tokens of each item, many items at once."""
    for start in range(0, len(source), _AT_ONCE):
        items = np.arange(start, min(start + _AT_ONCE, len(source)))
        epochs = np.zeros_like(items)
        ids = source.build(StepSequences(epochs, items, items), 0).input_ids.numpy()
        ends = np.cumsum(source.lengths(epochs, items))
        yield [part.tobytes() for part in np.split(ids[: ends[-1]], ends[:-1])]
