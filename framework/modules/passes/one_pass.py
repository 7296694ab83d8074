"""No regularization: one forward and one backward pass over each micro-batch."""

from collections.abc import Mapping

from torch import Tensor

from framework.batch import PackedBatch
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.tasks.task import Task, TaskModel


class OnePass:
    """The task's loss without additional terms."""

    def check(self, task: Task, model: TaskModel) -> None:
        """Accepts every task and model."""

    def weights(self, task: Task) -> dict[str, float]:
        """Returns the weights of the task's terms."""
        return dict(task.loss_weights)

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64 counts of one micro-batch on the host."""
        return SumCountObjective(task.loss_weights).counts(batch)

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs one forward and one backward pass; returns the sum of each term."""
        _, sums = passes.forward(batch, passes.dropout_keys(batch))
        passes.backward(SumCountObjective(passes.task.loss_weights).loss(sums, counts), is_last)
        return sums
