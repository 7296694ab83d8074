"""A trained model over one split, without gradients and without dropout; several processes share the split."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.planning.collate import shape_on
from framework.data.planning.plan import SequenceSource, StepPlan
from framework.distributed.parallel.precision import Precision
from framework.distributed.processes.agreement import check_agreement, gather
from framework.modules.evaluation import SplitEvaluation
from framework.modules.passes.model_passes import contribution
from framework.tasks.task import Task, TaskModel

ITEMS_AT_ONCE = 1024
"""Among so many items those of like length may share a micro-batch."""

_Outputs = tuple[PackedBatch, dict[str, Tensor]]


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

    def predict(self, source: SequenceSource) -> list[dict[str, Any]]:
        """Predictions for the rows of a source that `Task.build_source` made, in their order.

        Collective: all ranks must call.

        Raises:
            DistributedError: Processes read different rows.
        """
        check_agreement({"the fingerprint of the input": source.fingerprint})
        decoded: dict[int, Any] = {}
        for step in self._steps(source, ITEMS_AT_ONCE * self._num_ranks):
            for batch, outputs in step:
                with torch.inference_mode():
                    decoded.update(zip(batch.item_places(), self.task.decode(outputs, batch), strict=True))
        everything = {place: result for part in gather(decoded) for place, result in part.items()}
        return self.task.assemble(source, [everything[place] for place in range(len(source))])

    def evaluate(
        self, source: SequenceSource, step_size: int | None = None, examines: bool = False
    ) -> tuple[dict[str, float], SplitEvaluation]:
        """Loss and metrics of one split by name, and what is known beside them. Collective: all ranks must call.

        Args:
            source: The split.
            step_size: Items that a step-level loss compares with each other, as the validation of a run compares those
                of a training step; other losses take no notice of it. None: ITEMS_AT_ONCE.
            examines: Keep of each item what `SplitEvaluation.examine` needs.

        Raises:
            DistributedError: Processes read different data.
        """
        check_agreement({"the fingerprint of the data": source.fingerprint})
        evaluation = SplitEvaluation(self.task, source, self.device, self.mesh, examines)
        for step in self._steps(source, step_size or ITEMS_AT_ONCE):
            for batch, outputs in step:
                with torch.inference_mode(), self.precision.autocast(self.device.type):
                    brought = contribution(self.task, outputs, batch)
                with torch.inference_mode():
                    evaluation.update(outputs, brought, batch)
            with torch.inference_mode():
                evaluation.end_step()
        return evaluation.compute(), evaluation

    @property
    def _num_ranks(self) -> int:
        return self.mesh.size() if self.mesh is not None else 1

    def _steps(self, source: SequenceSource, step_size: int) -> Iterator[Iterator[_Outputs]]:
        """This process's micro-batches of a split with the head's outputs, in steps of so many items of all processes.

        `PackedBatch.item_places` are places in the source, not in ascending order. All processes have the same number
        of micro-batches, some perhaps without items.
        """
        budget = max(self.micro_batch_tokens, source.max_length)
        shapes = shape_on(self.device.type)
        plan = StepPlan(source, 0, step_size, budget, self._num_ranks, shuffle=False, shapes=shapes)

        def run(step: int) -> Iterator[_Outputs]:
            for built in plan.batches(step, self.rank):
                batch = built.to(self.device)
                with torch.inference_mode(), self.precision.autocast(self.device.type):
                    outputs = self.model(batch)
                # Outside the block: a generator would leave its modes switched on for the caller.
                yield batch, outputs

        return map(run, range(len(plan)))
