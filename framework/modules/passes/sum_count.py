"""Steps whose loss is a sum over targets, so that each micro-batch contributes its part independently."""

import torch
from torch import Tensor

from framework.batch import StepBatch
from framework.distributed.processes.position import begin_activity
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.modules.passes.regularization import Regularization
from framework.tasks.task import Task


class SumCountSteps:
    """Runs the passes of a regularization over each micro-batch in turn."""

    def __init__(self, task: Task, regularization: Regularization) -> None:
        self.regularization = regularization
        self.objective = SumCountObjective(regularization.weights(task))

    def counts(self, task: Task, step: StepBatch) -> Tensor:
        """Returns (terms,) float64 counts of this rank's share of a step, on the host or its device."""
        counts = [self.regularization.counts(task, batch) for batch in step.micro_batches]
        return counts[0] if len(counts) == 1 else torch.stack(counts).sum(dim=0)

    def run(self, passes: ModelPasses, step: StepBatch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulates the gradients of a step. Collective: all ranks must call.

        Args:
            passes: Passes of the step.
            step: This rank's micro-batches of the step.
            counts: (terms,) float64 counts of the whole step over all ranks.

        Returns:
            (terms,) float64 sums over all ranks, and (micro-batches, terms) float64 sums of this rank.
        """
        stacked = []
        for number, batch in enumerate(step.micro_batches, start=1):
            passes.number = number
            sums = self.regularization.run(passes, batch, counts, is_last=number == len(step.micro_batches))
            stacked.append(self.objective.stack(sums))
        begin_activity("sums up the losses")
        own = torch.stack(stacked)
        return sum_over_data_ranks(own.sum(dim=0), passes.mesh), own
