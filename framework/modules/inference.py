"""A trained model over one split, without gradients and without dropout; several processes share the split."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.plan import SequenceSource, StepPlan
from framework.distributed.agreement import check_agreement, gather
from framework.distributed.precision import Precision
from framework.modules.evaluation import SplitEvaluation
from framework.tasks.task import Task, TaskModel

_ITEMS_AT_ONCE = 1024
"""Among so many items those of like length may share a micro-batch."""


class Inference:
    """Each process has the whole model, and runs its share of the items of a split.

    Args:
        model: With its weights, on the device.
        task: What it was trained for.
        micro_batch_tokens: Token budget of a forward pass; raised to the longest item where it is below.
        precision: Of the forward pass.
        device: Where the model is.
        rank: Of this process.
        mesh: Over all processes, one axis; None: there is only this one.
    """

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        micro_batch_tokens: int,
        precision: Precision,
        device: torch.device,
        rank: int = 0,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.micro_batch_tokens = micro_batch_tokens
        self.precision = precision
        self.device = device
        self.rank = rank
        self.mesh = mesh

    def run(self, source: SequenceSource) -> Iterator[tuple[PackedBatch, dict[str, Tensor]]]:
        """Runs the model over this process's items of a split.

        Yields:
            Micro-batches with the head's outputs; `PackedBatch.item_places` are places in the source, not in ascending
            order. All processes have the same number of them, some perhaps without items.
        """
        num_ranks = self.mesh.size() if self.mesh is not None else 1
        budget = max(self.micro_batch_tokens, source.max_length)
        plan = StepPlan(
            source,
            seed=0,
            global_batch_size=_ITEMS_AT_ONCE * num_ranks,
            micro_batch_tokens=budget,
            num_ranks=num_ranks,
            shuffle=False,
        )
        for step in range(len(plan)):
            for share in plan.micro_batches(step, self.rank):
                batch = source.build(share.epochs, share.indices, share.sequence_ids, step).to(self.device)
                with torch.inference_mode(), self.precision.autocast(self.device.type):
                    outputs = self.model(batch)
                # Outside the block: a generator would leave its modes switched on for the caller.
                yield batch, outputs

    def predict(self, source: SequenceSource) -> list[dict[str, Any]]:
        """Predictions for the rows of a source that `Task.build_source` made, in their order.

        Collective: all ranks must call.

        Raises:
            DistributedError: Processes read different rows.
        """
        check_agreement({"the fingerprint of the input": source.fingerprint})
        decoded: dict[int, Any] = {}
        for batch, outputs in self.run(source):
            with torch.inference_mode():
                decoded.update(zip(batch.item_places(), self.task.decode(outputs, batch), strict=True))
        everything = {place: result for part in gather(decoded) for place, result in part.items()}
        return self.task.assemble(source, [everything[place] for place in range(len(source))])

    def evaluate(self, source: SequenceSource) -> tuple[dict[str, float], SplitEvaluation]:
        """Loss and metrics of one split by name, and what is known beside them. Collective: all ranks must call.

        Raises:
            DistributedError: Processes read different data.
        """
        check_agreement({"the fingerprint of the data": source.fingerprint})
        evaluation = SplitEvaluation(self.task, source, self.device, self.mesh)
        for batch, outputs in self.run(source):
            with torch.inference_mode():
                evaluation.update(outputs, self.task.loss_sums(outputs, batch), batch)
        return evaluation.compute(), evaluation
