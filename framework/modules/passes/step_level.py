"""Steps whose loss needs all sequences at once, by gradient caching (Gao et al. 2021, arXiv:2101.06983).

The encoder first runs without keeping activations, and its rows are gathered on all ranks. Each rank computes the full
loss and the gradient with respect to its own rows. The encoder then runs again and backpropagates that gradient.
Dropout is a hash, so both runs have the same masks. A rank's last micro-batch keeps its graph and runs once, while
section 3.2 of the paper runs all of them twice. A single micro-batch is therefore not recomputed.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from framework.batch import StepBatch
from framework.distributed.processes.position import begin_activity
from framework.modules.passes.contributions import Rows, full_precision, rows_of_step
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task


class StepLevelSteps:
    """Runs the passes of a step-level task."""

    def __init__(self, task: StepLevelTask, distillation: EmbeddingDistillation | None = None) -> None:
        self.distillation = distillation
        self.objective = SumCountObjective(task.loss_weights if distillation is None else distillation.weights(task))

    def counts(self, task: Task, step: StepBatch) -> Tensor:
        """Returns (terms,) float64 counts of this rank's share of a step, on the host."""
        counts = self.objective.counts if self.distillation is None else partial(self.distillation.counts, task)
        return torch.stack([counts(batch) for batch in step.micro_batches]).sum(dim=0)

    def run(self, passes: ModelPasses, step: StepBatch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulates the gradients of a step. Collective: all ranks must call.

        Args:
            passes: Passes of the step.
            step: This rank's micro-batches of the step.
            counts: (terms,) float64 counts of the whole step over all ranks.

        Returns:
            (terms,) float64 sums over the whole step, the same on all ranks, and (micro-batches, terms) float64 values
            that identify non-finite micro-batches of this rank. A micro-batch has no loss of its own. Its value is the
            sum of the step, or the sum of its own rows if rows of any rank are not finite.
        """
        last = len(step.micro_batches) - 1
        parts: list[Rows] = []
        for index in range(last + 1):
            with torch.set_grad_enabled(index == last):
                parts.append(self._rows(passes, step, index))
        begin_activity("computes the loss of the step")
        gradients, sums, own = self._cached_gradients(passes, parts, counts)
        for index in range(last, -1, -1):
            rows = parts[index] if index == last else self._rows(passes, step, index, is_repeated=True)
            named = gradients[index].items()
            products = [(rows[name] * gradient).sum() for name, gradient in named if name in rows]
            passes.backward(torch.stack(products).sum(), is_last=index == 0)
        return sums, own

    def _rows(self, passes: ModelPasses, step: StepBatch, index: int, is_repeated: bool = False) -> Rows:
        passes.number = index + 1
        batch = step.micro_batches[index]
        _, rows = passes.forward(batch, passes.dropout_keys(batch))
        return rows if self.distillation is None else self.distillation.add_rows(passes, batch, rows, is_repeated)

    def _cached_gradients(
        self, passes: ModelPasses, parts: Sequence[Rows], counts: Tensor
    ) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
        """Computes the gradients of the step's loss for each micro-batch's rows, and the results of `run`."""
        assert isinstance(passes.task, StepLevelTask)
        leaves = [{name: full_precision(value.detach()) for name, value in part.items()} for part in parts]
        names = [name for name, value in leaves[0].items() if value.is_floating_point()]
        inputs = [part[name].requires_grad_() for part in leaves for name in names]
        with torch.enable_grad():
            rows = rows_of_step(leaves, passes.mesh)
            terms = passes.task.step_loss_sums(rows)
            if self.distillation is not None:
                terms |= self.distillation.sums(rows)
            loss = self.objective.loss(terms, counts)
        flat_gradients = iter(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
        gradients = [{name: next(flat_gradients) for name in names} for _ in parts]

        sums = self.objective.stack(terms)
        all_finite = torch.stack([torch.isfinite(rows[name]).all() for name in names]).all()
        row_sums = [torch.stack([part[name].detach().double().sum() for name in names]).sum() for part in leaves]
        return gradients, sums, torch.where(all_finite, sums, torch.stack(row_sums)[:, None])
