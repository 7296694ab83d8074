"""Forward and backward passes of one step over a rank's micro-batches, of which every form of loss is made."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.distributed.mesh import data_parallel_size
from framework.distributed.parallel.parallelize import set_gradient_sync
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import Sharding
from framework.distributed.processes.position import mark
from framework.nn.dropout import token_keys
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task, TaskModel


def contribution(task: Task, outputs: dict[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
    """What a micro-batch brings to the loss: the sums of its terms, or for a step-level task its rows."""
    return task.representations(outputs, batch) if isinstance(task, StepLevelTask) else task.loss_sums(outputs, batch)


@dataclass
class ModelPasses:
    """The passes of one step.

    Attributes:
        model: Parallelized.
        task: States what a micro-batch brings to the loss.
        precision: Of the forward pass.
        seed: Of dropout.
        step: Optimizer steps completed before this one.
        sharding: As given to `parallelize`.
        mesh: Of the strategy; None: a single process.
        loss_scale: What losses are multiplied by in fp16; 1 else.
        run_backward: Runs the backward pass of a scalar.
        number: Of the micro-batch, counted from 1, for marks of progress.
    """

    model: TaskModel
    task: Task
    precision: Precision
    seed: int
    step: int
    sharding: Sharding
    mesh: DeviceMesh | None
    loss_scale: float
    run_backward: Callable[[Tensor], None]
    number: int = 1

    def dropout_keys(self, batch: PackedBatch, pass_index: int = 0) -> Tensor:
        """(tokens,) int64; another pass index gives other masks."""
        return token_keys(self.seed, self.step, pass_index, batch)

    def forward(
        self, batch: PackedBatch, dropout_keys: Tensor | None, embedding_offset: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Runs the model.

        Args:
            batch: One micro-batch.
            dropout_keys: Of `dropout_keys`.
            embedding_offset: As `TaskModel.forward` takes it.

        Returns:
            The head's outputs, and what they bring to the loss (`contribution`).
        """
        mark(f"forward of micro-batch {self.number}")
        with self.precision.autocast(batch.input_ids.device.type):
            outputs = self.model(batch, dropout_keys, embedding_offset)
            return outputs, contribution(self.task, outputs, batch)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds the gradients of a part of the step's loss; they are reduced over ranks with the last, or with each.

        Data parallelism averages over ranks, but the loss holds the global denominator: it is scaled up.

        Args:
            loss: Scalar; over all backward passes of all ranks the sum is the loss of the step.
            is_last: This is the last backward pass of the step on this rank.
        """
        set_gradient_sync(self.model, is_last, self.sharding)
        mark(f"backward of micro-batch {self.number}")
        self.run_backward(loss * (data_parallel_size(self.mesh) * self.loss_scale))
