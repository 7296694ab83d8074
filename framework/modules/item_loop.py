"""Runs the items of a split in micro-batches without gradients; several processes share the items."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.planning.collate import shape_on
from framework.data.planning.plan import SequenceSource, StepPlan
from framework.distributed.parallel.precision import Precision
from framework.distributed.processes.agreement import check_agreement, gather

ITEMS_AT_ONCE = 1024
"""Window of items; items of similar length within a window share micro-batches."""


def ignore(_: int) -> None:
    """Ignores a number of items."""


class ItemLoop:
    """Base of inference; each process has the full model and runs its share of the items.

    Args:
        micro_batch_tokens: Token budget of a forward pass; a smaller budget is raised to the longest item.
        precision: Precision of the forward pass.
        device: Device of the model.
        rank: Rank of this process.
        mesh: Mesh over all processes, with one axis; None: a single process.
    """

    def __init__(
        self,
        micro_batch_tokens: int,
        precision: Precision,
        device: torch.device,
        rank: int = 0,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.micro_batch_tokens = micro_batch_tokens
        self.precision = precision
        self.device = device
        self.rank = rank
        self.mesh = mesh
        self.is_alone = False

    @property
    def num_ranks(self) -> int:
        """Number of processes that share the items."""
        return self.mesh.size() if self.mesh is not None else 1

    def decode_items(
        self,
        source: SequenceSource,
        decode: Callable[[PackedBatch], Sequence[Any]],
        advance: Callable[[int], None] = ignore,
    ) -> list[Any]:
        """Returns the decoded object of each item of a source, in their order. Collective: all ranks must call.

        Args:
            source: Items to run.
            decode: Function from a micro-batch to the objects of its `item_indices`. It runs in inference mode.
            advance: Callback for the number of items that are done.

        Raises:
            DistributedError: Processes read different items.
        """
        if not self.is_alone:
            check_agreement({"the fingerprint of the input": source.fingerprint})
        decoded: dict[int, Any] = {}
        plan = self._plan(source, ITEMS_AT_ONCE * self.num_ranks)
        for step in range(len(plan)):
            for batch in self._batches(plan, step):
                with torch.inference_mode():
                    decoded.update(zip(batch.item_indices(), decode(batch), strict=True))
            advance(min(len(decoded) * self.num_ranks, len(source)))
        parts = [decoded] if self.is_alone else gather(decoded)
        by_item = {item: result for part in parts for item, result in part.items()}
        return [by_item[item] for item in range(len(source))]

    def micro_batches(self, source: SequenceSource) -> Iterator[PackedBatch]:
        """Yields the micro-batches of this process, on its device, for callers that run parts of the model.

        `PackedBatch.item_indices` returns indices of the source, not in ascending order. All processes have the same
        number of micro-batches; some of them may have no items.
        """
        plan = self._plan(source, ITEMS_AT_ONCE * self.num_ranks)
        for step in range(len(plan)):
            yield from self._batches(plan, step)

    def _plan(self, source: SequenceSource, step_size: int) -> StepPlan:
        budget = max(self.micro_batch_tokens, source.max_length)
        shapes = shape_on(self.device.type)
        return StepPlan(source, 0, step_size, budget, self.num_ranks, shuffle=False, shapes=shapes)

    def _batches(self, plan: StepPlan, step: int) -> Iterator[PackedBatch]:
        for built in plan.batches(step, self.rank):
            yield built.to(self.device)
