"""Predicts rows of several adapters of one encoder in shared micro-batches; several processes share the rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.planning.collate import shape_on
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import SequenceSource, StepPlan, StepSequences
from framework.distributed.parallel.precision import Precision
from framework.distributed.processes.agreement import check_agreement, gather
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import ITEMS_AT_ONCE
from framework.nn.lora_bank import TokenRanges
from framework.tasks.task import Task

Parts = list[tuple[int, PackedBatch]]
"""Micro-batch of several adapters: the index of each adapter with its own sequences, in the order of the tokens."""


class _JoinedSource:
    """Items of several sources, of which a plan reads only the lengths (`SequenceSource`).

    Args:
        sources: Sources of the adapters.
    """

    shuffle = Shuffle()

    def __init__(self, sources: Sequence[SequenceSource]) -> None:
        self.sources = sources
        sizes = [len(source) for source in sources]
        self.adapters = np.repeat(np.arange(len(sources)), sizes)
        self.items = np.concatenate([np.arange(size) for size in sizes])
        self.max_length = max(source.max_length for source in sources)

    @property
    def fingerprint(self) -> str:
        return " ".join(source.fingerprint for source in self.sources)

    @property
    def mean_length(self) -> float:
        return float(np.mean([source.mean_length for source in self.sources]))

    def __len__(self) -> int:
        return len(self.items)

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing: the rows to predict are in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        lengths = np.zeros(len(indices), dtype=np.int64)
        for adapter, own in self._by_adapter(indices):
            lengths[own] = self.sources[adapter].lengths(epochs[own], self.items[indices[own]])
        return lengths

    def build(self, sequences: StepSequences, step: int, shape: Any = None) -> PackedBatch:
        return _joined(self.parts(sequences, step, shape))

    def parts(self, sequences: StepSequences, step: int, shape: Any) -> Parts:
        """Builds the micro-batch of each adapter that has items among the sequences."""
        parts = []
        for adapter, own in self._by_adapter(sequences.indices):
            items = self.items[sequences.indices[own]]
            chosen = StepSequences(sequences.epochs[own], items, items)
            parts.append((adapter, self.sources[adapter].build(chosen, step, shape)))
        return parts

    def _by_adapter(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        adapters = self.adapters[indices]
        for adapter in np.unique(adapters):
            yield int(adapter), np.flatnonzero(adapters == adapter)


class AdapterInference:
    """Prediction of rows with the adapter and the head of each; each process runs its share of the items.

    Args:
        encoder: Encoder with the updates of all adapters (`framework.nn.lora_bank.apply_bank`), on the device.
        ranges: Tokens of the adapters, which the encoder reads.
        heads: Head of each adapter, on the device.
        tasks: Task of each adapter.
        micro_batch_tokens: Token budget of a forward pass; a smaller budget is raised to the longest item.
        precision: Precision of the forward pass.
        device: Device of the model.
        rank: Rank of this process.
        mesh: Mesh over all processes, with one axis; None: a single process.
    """

    def __init__(
        self,
        encoder: TransformerEncoder,
        ranges: TokenRanges,
        heads: Sequence[nn.Module],
        tasks: Sequence[Task],
        micro_batch_tokens: int,
        precision: Precision,
        device: torch.device,
        rank: int = 0,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.encoder = encoder
        self.ranges = ranges
        self.heads = heads
        self.tasks = tasks
        self.micro_batch_tokens = micro_batch_tokens
        self.precision = precision
        self.device = device
        self.rank = rank
        self.mesh = mesh

    def predict(self, sources: Sequence[SequenceSource]) -> list[list[dict[str, Any]]]:
        """Returns for each adapter the predictions for the rows of its source from `Task.build_source`, in their order.

        Collective: all ranks must call.

        Raises:
            DistributedError: Processes read different rows.
        """
        source = _JoinedSource(sources)
        check_agreement({"the fingerprint of the input": source.fingerprint})
        decoded: dict[tuple[int, int], Any] = {}
        num_ranks = self.mesh.size() if self.mesh is not None else 1
        budget = max(self.micro_batch_tokens, source.max_length)
        shapes = shape_on(self.device.type)
        plan = StepPlan(source, 0, ITEMS_AT_ONCE * num_ranks, budget, num_ranks, shuffle=False, shapes=shapes)
        for step in range(len(plan)):
            for micro_batch in plan.micro_batches(step, self.rank):
                # One with no items has no adapters.
                if len(micro_batch):
                    parts = source.parts(micro_batch, step, micro_batch.shape)
                    decoded.update(self._decoded([(adapter, batch.to(self.device)) for adapter, batch in parts]))
        by_item = {key: result for part in gather(decoded) for key, result in part.items()}
        return [
            task.assemble(own, [by_item[adapter, item] for item in range(len(own))])
            for adapter, (task, own) in enumerate(zip(self.tasks, sources, strict=True))
        ]

    def _decoded(self, parts: Parts) -> Iterator[tuple[tuple[int, int], Any]]:
        """Runs one micro-batch, and yields the decoded object of each item by (adapter, item)."""
        sizes = [len(batch.input_ids) for _, batch in parts]
        self.ranges.adapters, self.ranges.sizes = [adapter for adapter, _ in parts], sizes
        with torch.inference_mode():
            with self.precision.autocast(self.device.type):
                hidden_states: Tensor = self.encoder(_joined(parts))
                outputs: list[Mapping[str, Tensor]] = [
                    self.heads[adapter](own, batch)
                    for (adapter, batch), own in zip(parts, hidden_states.split(sizes), strict=True)
                ]
            for (adapter, batch), own_outputs in zip(parts, outputs, strict=True):
                results = self.tasks[adapter].decode(own_outputs, batch)
                for item, result in zip(batch.item_indices(), results, strict=True):
                    yield (adapter, item), result


def _joined(parts: Parts) -> PackedBatch:
    """Concatenates micro-batches for the encoder, which reads no targets."""
    batches = [batch for _, batch in parts]
    starts = np.cumsum([0, *(len(batch.input_ids) for batch in batches)])
    ends = [batch.cu_seqlens[1:] + int(start) for batch, start in zip(batches, starts, strict=False)]
    return replace(
        batches[0],
        input_ids=torch.cat([batch.input_ids for batch in batches]),
        position_ids=torch.cat([batch.position_ids for batch in batches]),
        token_type_ids=torch.cat([batch.token_type_ids for batch in batches]),
        sequence_ids=torch.cat([batch.sequence_ids for batch in batches]),
        cu_seqlens=torch.cat([batches[0].cu_seqlens[:1], *ends]),
        lengths=tuple(length for batch in batches for length in batch.lengths),
        max_seqlen=max(batch.max_seqlen for batch in batches),
        num_sequences=sum(batch.num_sequences for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        targets={},
        counts={},
    )
