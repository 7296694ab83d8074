"""Runs a trained model on a split without gradients and dropout; several processes share the split."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.planning.plan import SequenceSource
from framework.distributed.parallel.precision import Precision
from framework.distributed.processes.agreement import check_agreement
from framework.modules.evaluation import SplitEvaluation
from framework.modules.item_loop import ITEMS_AT_ONCE, ItemLoop, ignore
from framework.modules.passes.contributions import contribution
from framework.tasks.task import Task, TaskModel

_Outputs = tuple[PackedBatch, dict[str, Tensor]]


class Inference(ItemLoop):
    """Prediction and evaluation; each process has the full model and runs its share of the items of a split.

    Args:
        model: Model with its weights, on the device.
        task: Task of the model.
        micro_batch_tokens: Token budget of a forward pass; a smaller budget is raised to the longest item.
        precision: Precision of the forward pass.
        device: Device of the model.
        rank: Rank of this process.
        mesh: Mesh over all processes, with one axis; None: a single process.
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
        super().__init__(micro_batch_tokens, precision, device, rank, mesh)
        self.model = model
        self.task = task

    def with_model(self, model: TaskModel) -> "Inference":
        """Returns the inference of another model of the same task on the same device."""
        return Inference(model, self.task, self.micro_batch_tokens, self.precision, self.device, self.rank, self.mesh)

    def alone(self) -> "Inference":
        """Returns the inference of sources that only this process reads, whose methods are not collective."""
        inference = Inference(self.model, self.task, self.micro_batch_tokens, self.precision, self.device)
        inference.is_alone = True
        return inference

    def predict(self, source: SequenceSource) -> list[dict[str, Any]]:
        """Returns the predictions for the rows of a source from `Task.build_source`, in their order.

        Collective: all ranks must call.

        Raises:
            DistributedError: Processes read different rows.
        """
        return self.task.assemble(source, self.decode(source))

    def decode(self, source: SequenceSource, advance: Callable[[int], None] = ignore) -> list[Any]:
        """Returns the objects of `Task.decode` for the items of a source, in their order.

        Collective: all ranks must call.

        Args:
            source: Items to run.
            advance: Callback for the number of items that are done.

        Raises:
            DistributedError: Processes read different rows.
        """
        return self.decode_items(source, self._decoded, advance)

    def _decoded(self, batch: PackedBatch) -> list[Any]:
        with self.precision.autocast(self.device.type):
            outputs = self.model(batch)
        return self.task.decode(outputs, batch)

    def evaluate(
        self, source: SequenceSource, step_size: int | None = None, examines: bool = False
    ) -> tuple[dict[str, float], SplitEvaluation]:
        """Evaluates one split. Collective: all ranks must call.

        Args:
            source: The split.
            step_size: Number of items that a step-level loss compares with each other, as the validation of a run
                compares those of a training step. Other losses do not depend on it. None: ITEMS_AT_ONCE.
            examines: True keeps the data of each item that `SplitEvaluation.examine` needs.

        Returns:
            Loss and metrics by name, and the evaluation with the class table and the error analysis.

        Raises:
            DistributedError: Processes read different data.
        """
        check_agreement({"the fingerprint of the data": source.fingerprint})
        evaluation = SplitEvaluation(self.task, source, self.device, self.mesh, examines)
        for step in self._steps(source, step_size or ITEMS_AT_ONCE):
            for batch, outputs in step:
                with torch.inference_mode(), self.precision.autocast(self.device.type):
                    terms = contribution(self.task, outputs, batch)
                with torch.inference_mode():
                    evaluation.update(outputs, terms, batch)
            with torch.inference_mode():
                evaluation.end_step()
        return evaluation.compute(), evaluation

    def _steps(self, source: SequenceSource, step_size: int) -> Iterator[Iterator[_Outputs]]:
        """Yields steps of `step_size` items over all processes: this process's micro-batches with their outputs."""
        plan = self._plan(source, step_size)

        def run(step: int) -> Iterator[_Outputs]:
            for batch in self._batches(plan, step):
                with torch.inference_mode(), self.precision.autocast(self.device.type):
                    outputs = self.model(batch)
                # Outside the block, because a generator's modes would stay enabled in the caller.
                yield batch, outputs

        return map(run, range(len(plan)))
