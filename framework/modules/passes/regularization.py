"""The protocol of a regularization: passes over one micro-batch that add terms to a sum-and-count loss."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from framework.batch import PackedBatch
from framework.modules.passes.model_passes import ModelPasses
from framework.tasks.task import Task, TaskModel


class Regularization(Protocol):
    """A stateless object that is built from the config group `regularization`."""

    def check(self, task: Task, model: TaskModel) -> None:
        """Checks that the regularization applies to this task and model (on the meta device).

        Raises:
            ConfigError: It does not apply.
        """

    def weights(self, task: Task) -> dict[str, float]:
        """Returns the weight of each term of the training loss by name, the task's terms first."""

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64 counts of one micro-batch, on the host or on its device."""

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs all passes over one micro-batch.

        Args:
            passes: Passes of the step.
            batch: One micro-batch, possibly without real sequences.
            counts: (terms,) float64 counts of the whole step over all ranks, in the order of `weights`.
            is_last: True for the rank's last micro-batch of the step.

        Returns:
            The sum of each term: fp32 scalars.
        """
