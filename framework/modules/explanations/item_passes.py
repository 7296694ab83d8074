"""Passes over copies of the items of a source, packed into micro-batches that the ranks share.

Explanations need many passes over each item: points of a path, or copies with masked words. The model may be a whole
one on each rank, or the parallelized model of a run. Every pass begins at the root of the model and every rank makes
the same number of passes, so shards are gathered as in training.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.planning.collate import shape_on
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import gather
from framework.distributed.processes.position import begin_activity
from framework.modules.inference import Inference
from framework.tasks.explanation import is_special

T = TypeVar("T")

NO_WORD = -1
"""Word index of special tokens, which no explanation changes."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """Copies of items in one micro-batch.

    Attributes:
        batch: Micro-batch on the device with one item for each job.
        numbers: (jobs,) index of each job in the list of all jobs.
        sizes: (jobs,) number of tokens of each job.
        job_of_token: (tokens,) int64 on the device, index within `numbers`; dummies belong to the last job.
        is_real: (tokens,) True for tokens that are neither special nor dummies, on the device.
    """

    batch: PackedBatch
    numbers: np.ndarray
    sizes: np.ndarray
    job_of_token: Tensor
    is_real: Tensor

    def split(self, values: Tensor) -> list[np.ndarray]:
        """Splits (tokens,) values on the device into one array for each job, on the host."""
        host = values.double().cpu().numpy()[: int(self.sizes.sum())]
        return np.split(host, np.cumsum(self.sizes)[:-1])

    def on_device(self, parts: Sequence[np.ndarray]) -> Tensor:
        """Returns (tokens,) True where the masks of the jobs are True; False for dummies.

        Args:
            parts: (tokens,) bool for each job.
        """
        joined = torch.zeros_like(self.is_real)
        joined[: int(self.sizes.sum())] = torch.from_numpy(np.concatenate(parts)).to(joined.device)
        return joined


class ItemPasses:
    """Passes over copies of items of one source.

    Args:
        inference: Model on its device.
        tokenizer: Tokenizer of the model.
        source: Source of the items.
    """

    def __init__(self, inference: Inference, tokenizer: Tokenizer, source: SequenceSource) -> None:
        self.model = inference.model
        self.task = inference.task
        self._inference = inference
        self._tokenizer = tokenizer
        self._source = source

    def run(self, items: Sequence[int], compute: Callable[[Jobs], T]) -> list[tuple[np.ndarray, T]]:
        """Runs a function on micro-batches that hold one copy of an item for each job.

        Collective: all ranks must call with the same items. They share the micro-batches, and run equally many.

        Args:
            items: Item of each job.
            compute: Function that makes the passes; its result is pickled.

        Returns:
            Indices of the jobs of each micro-batch, and the result of the function, in the order of the jobs.
        """
        indices = np.array(items, dtype=np.int64)
        lengths = self._source.lengths(np.zeros_like(indices), indices)
        chunks = list(_chunks(lengths, self._inference.micro_batch_tokens))
        own: dict[int, T] = {}
        for first in range(0, len(chunks), self._inference.num_ranks):
            number = min(first + self._inference.rank, len(chunks) - 1)  # the last one may run on several ranks
            begin_activity("explains predictions")
            own[number] = compute(self._jobs(indices, lengths, chunks[number]))
        by_number = {number: result for part in gather(own) for number, result in part.items()}
        return [(chunk, by_number[number]) for number, chunk in enumerate(chunks)]

    def on_every_rank(self, items: Sequence[int]) -> Iterator[Jobs]:
        """Yields the micro-batches of `run` on every rank, for passes whose results all ranks need."""
        indices = np.array(items, dtype=np.int64)
        lengths = self._source.lengths(np.zeros_like(indices), indices)
        for numbers in _chunks(lengths, self._inference.micro_batch_tokens):
            yield self._jobs(indices, lengths, numbers)

    def input_ids(self, items: Sequence[int]) -> list[np.ndarray]:
        """Returns the ids of each item, special tokens included."""
        if not items:
            return []
        indices = np.array(items, dtype=np.int64)
        batch = self._source.build(_sequences(indices), 0)
        lengths = self._source.lengths(np.zeros_like(indices), indices)
        return np.split(batch.input_ids.numpy()[: lengths.sum()], np.cumsum(lengths)[:-1])

    def scores(self, batch: PackedBatch, targets: Sequence[Any]) -> Tensor:
        """Returns (items,) scores of a micro-batch, from `Task.explained_scores`."""
        with self.autocast():
            return self.task.explained_scores(self.model(batch), batch, targets)

    def masked(self, batch: PackedBatch, hidden: Tensor) -> PackedBatch:
        """Returns a micro-batch in which tokens are replaced by the mask token where `hidden` (tokens,) is True."""
        return replace(batch, input_ids=batch.input_ids.masked_fill(hidden, self._tokenizer.mask_id))

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of the forward pass in the precision of the inference."""
        return self._inference.precision.autocast(self._inference.device.type)

    def _jobs(self, indices: np.ndarray, lengths: np.ndarray, numbers: np.ndarray) -> Jobs:
        device = self._inference.device
        own, sizes = indices[numbers], lengths[numbers]
        built = self._source.build(_sequences(own), 0, shape_on(device.type))
        padding = len(built.input_ids) - int(sizes.sum())
        jobs = np.concatenate([np.repeat(np.arange(len(own)), sizes), np.full(padding, len(own) - 1)])
        is_real = ~is_special(built.input_ids.numpy(), self._tokenizer)
        is_real[len(is_real) - padding :] = False
        of_token, real = torch.from_numpy(jobs).to(device), torch.from_numpy(is_real).to(device)
        return Jobs(built.to(device), numbers, sizes, of_token, real)


def word_indices(input_ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the word of each token, counted from 0; -1 for special tokens.

    A token that does not continue a word begins one, and so does the first token after a special token.

    Args:
        input_ids: (tokens,) ids of an item.
        tokenizer: Tokenizer of the model.

    Returns:
        (tokens,) int64.
    """
    special = is_special(input_ids, tokenizer)
    after_special = np.concatenate([[True], special[:-1]])
    begins = ~special & (tokenizer.starts_word[input_ids] | after_special)
    return np.where(special, NO_WORD, np.cumsum(begins) - 1)


def _sequences(indices: np.ndarray) -> StepSequences:
    return StepSequences(np.zeros_like(indices), indices, np.arange(len(indices)))


def _chunks(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yields consecutive indices whose lengths sum to at most the budget; a longer item is alone."""
    start, total = 0, 0
    for index, length in enumerate(lengths.tolist()):
        if index > start and total + length > budget:
            yield np.arange(start, index)
            start, total = index, 0
        total += length
    if start < len(lengths):
        yield np.arange(start, len(lengths))
