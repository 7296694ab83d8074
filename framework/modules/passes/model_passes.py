"""Forward and backward passes over a rank's micro-batches of one step, shared by all kinds of loss."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.distributed.mesh import data_parallel_size
from framework.distributed.parallel.parallelize import set_gradient_sync
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import Sharding
from framework.distributed.processes.position import begin_activity
from framework.modules.passes.contributions import contribution
from framework.nn.dropout import dropout_base, token_keys
from framework.tasks.task import Task, TaskModel


@dataclass
class ModelPasses:
    """Forward and backward passes of one step.

    Attributes:
        model: Parallelized model.
        task: Task with the loss.
        precision: Precision of the forward pass.
        has_dropout: True if the model drops channels.
        seed: Seed of dropout.
        step: Optimizer steps completed before this one.
        sharding: Sharding that was passed to `parallelize`.
        mesh: Mesh of the strategy; None: a single process.
        loss_scale: Factor on losses in fp16, else 1.
        run_backward: Function that runs the backward pass of a scalar.
        number: Number of the micro-batch, counted from 1, for the recorded activity.
        fixed_dropout_base: int64 scalar on the device that holds the `dropout_base` of the step; None: the base is
            computed from seed, step and pass index.
    """

    model: TaskModel
    task: Task
    precision: Precision
    has_dropout: bool
    seed: int
    step: int
    sharding: Sharding
    mesh: DeviceMesh | None
    loss_scale: float
    run_backward: Callable[[Tensor], None]
    number: int = 1
    fixed_dropout_base: Tensor | None = None

    def dropout_keys(self, batch: PackedBatch, pass_index: int = 0) -> Tensor | None:
        """Returns (tokens,) int64 keys, with other masks for each pass index; None if the model has no dropout."""
        if not self.has_dropout:
            return None
        if self.fixed_dropout_base is not None:
            assert pass_index == 0
            return token_keys(self.fixed_dropout_base, batch)
        return token_keys(dropout_base(self.seed, self.step, pass_index), batch)

    def forward(
        self, batch: PackedBatch, dropout_keys: Tensor | None, embedding_offset: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Runs the model.

        Args:
            batch: One micro-batch.
            dropout_keys: (tokens,) int64 from the method `dropout_keys`; None disables dropout.
            embedding_offset: Offset of the embeddings, as in `TaskModel.forward`.

        Returns:
            The head's outputs, and their contribution to the loss (`contribution`).
        """
        outputs = self.outputs(batch, dropout_keys, embedding_offset)
        with self.precision.autocast(batch.input_ids.device.type):
            return outputs, contribution(self.task, outputs, batch)

    def outputs(
        self, batch: PackedBatch, dropout_keys: Tensor | None, embedding_offset: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Runs the model as `forward` does, without the loss."""
        begin_activity(f"forward of micro-batch {self.number}")
        with self.precision.autocast(batch.input_ids.device.type):
            return self.model(batch, dropout_keys, embedding_offset)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulates the gradients of a part of the step's loss.

        Depending on the sharding, gradients are reduced over ranks in the last backward pass or in each. Data
        parallelism averages gradients over ranks, but the loss already has the global denominator. The loss is
        therefore multiplied by the number of data-parallel ranks.

        Args:
            loss: Scalar; its sum over all backward passes of all ranks is the loss of the step.
            is_last: True for the last backward pass of the step on this rank.
        """
        set_gradient_sync(self.model, is_last, self.sharding)
        begin_activity(f"backward of micro-batch {self.number}")
        self.run_backward(loss * (data_parallel_size(self.mesh) * self.loss_scale))
