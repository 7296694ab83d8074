"""Predicts rows of several adapters of one encoder in shared micro-batches; several processes share the rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.distributed.parallel.precision import Precision
from framework.models.encoder import TransformerEncoder
from framework.modules.item_loop import ItemLoop
from framework.nn.lora_bank import TokenRanges
from framework.tasks.task import Task


@dataclass(frozen=True, slots=True)
class JoinedBatch(PackedBatch):
    """Micro-batch of several adapters, of which the encoder reads all tokens.

    Attributes:
        parts: Index of each adapter with its own sequences, in the order of the tokens. Their items have the indices of
            the joined source.
    """

    parts: Sequence[tuple[int, PackedBatch]] = ()

    @classmethod
    def of(cls, parts: Sequence[tuple[int, PackedBatch]]) -> "JoinedBatch":
        """Concatenates the micro-batches of adapters, without their targets."""
        batches = [batch for _, batch in parts]
        starts = np.cumsum([0, *(len(batch.input_ids) for batch in batches)])
        ends = [batch.cu_seqlens[1:] + int(start) for batch, start in zip(batches, starts, strict=False)]
        return cls(
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
            parts=parts,
        )

    def item_indices(self) -> list[int]:
        """Returns the indices of the items of all parts in order."""
        return [item for _, batch in self.parts for item in batch.item_indices()]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "JoinedBatch":
        """Copies the tensors to a device."""
        # Dataclasses with slots have no super().
        moved = cast(JoinedBatch, PackedBatch.to(self, device, non_blocking))
        return replace(moved, parts=[(adapter, batch.to(device, non_blocking)) for adapter, batch in self.parts])


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

    def build(self, sequences: StepSequences, step: int, shape: Any = None) -> JoinedBatch:
        """Builds the micro-batches of the adapters that have items among the sequences; of the first if none has."""
        found = list(self._by_adapter(sequences.indices)) or [(0, np.zeros(0, dtype=np.int64))]
        parts = []
        for adapter, own in found:
            items = self.items[sequences.indices[own]]
            chosen = StepSequences(sequences.epochs[own], items, sequences.sequence_ids[own])
            parts.append((adapter, self.sources[adapter].build(chosen, step, shape)))
        return JoinedBatch.of(parts)

    def _by_adapter(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        adapters = self.adapters[indices]
        for adapter in np.unique(adapters):
            yield int(adapter), np.flatnonzero(adapters == adapter)


class AdapterInference(ItemLoop):
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
        super().__init__(micro_batch_tokens, precision, device, rank, mesh)
        self.encoder = encoder
        self.ranges = ranges
        self.heads = heads
        self.tasks = tasks

    def predict(self, sources: Sequence[SequenceSource]) -> list[list[dict[str, Any]]]:
        """Returns for each adapter the predictions for the rows of its source from `Task.build_source`, in their order.

        Collective: all ranks must call.

        Raises:
            DistributedError: Processes read different rows.
        """
        decoded = self.decode_items(_JoinedSource(sources), self._decoded)
        ends = np.cumsum([len(source) for source in sources]).tolist()
        return [
            task.assemble(source, decoded[end - len(source) : end])
            for task, source, end in zip(self.tasks, sources, ends, strict=True)
        ]

    def _decoded(self, batch: PackedBatch) -> list[Any]:
        """Runs the encoder once, and the head of each adapter on its own tokens."""
        parts = cast(JoinedBatch, batch).parts
        sizes = [len(own.input_ids) for _, own in parts]
        self.ranges.adapters, self.ranges.sizes = [adapter for adapter, _ in parts], sizes
        with self.precision.autocast(self.device.type):
            hidden_states: Tensor = self.encoder(batch)
            outputs: list[Mapping[str, Tensor]] = [
                self.heads[adapter](own, part)
                for (adapter, part), own in zip(parts, hidden_states.split(sizes), strict=True)
            ]
        decoded: list[Any] = []
        for (adapter, part), own_outputs in zip(parts, outputs, strict=True):
            decoded += self.tasks[adapter].decode(own_outputs, part)
        return decoded
