"""What a regularization is to the steps of a sum-and-count loss: passes over one micro-batch that add terms."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from framework.batch import PackedBatch
from framework.modules.passes.model_passes import ModelPasses
from framework.tasks.task import Task, TaskModel


class Regularization(Protocol):
    """Stateless; made from the config group `regularization`."""

    def check(self, task: Task, model: TaskModel) -> None:
        """Checks that it can do something for this task and model (on the meta device).

        Raises:
            ConfigError: It cannot.
        """

    def weights(self, task: Task) -> dict[str, float]:
        """Weight of each term of the training loss by name: those of the task first."""

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """(terms,) float64 counts of one micro-batch, on the host or its device."""

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs all passes over one micro-batch.

        Args:
            passes: Of the step.
            batch: One micro-batch, perhaps without real sequences.
            counts: (terms,) float64 of the whole step over all ranks, in the order of `weights`.
            is_last: This is the rank's last micro-batch of the step.

        Returns:
            Sum of each term: fp32 scalars.
        """
