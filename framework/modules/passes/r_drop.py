"""R-Drop (Liang et al. 2021, arXiv:2106.14448): two passes with different dropout are trained to agree."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.errors import ConfigError
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.nn.dropout import has_dropout
from framework.tasks.task import Task, TaskModel

TERM = "r_drop"


class RDrop:
    """The task's terms averaged over two passes, and a term `r_drop`, the symmetric divergence between their outputs.

    It follows section 2.2 and the authors' published code. Equation 4 of the paper adds the two passes instead of
    averaging them, so its alpha is twice this one. The divergence needs both forward passes, which run before the
    single backward pass, so a micro-batch needs twice the memory.

    Args:
        alpha: Weight of the divergence, which is divided by the total number of targets of all outputs.

    Raises:
        ConfigError: alpha is not above 0.
    """

    def __init__(self, alpha: float) -> None:
        if not alpha > 0:
            raise ConfigError(
                f"`regularization.alpha` is {alpha}. It must be above 0. Raise it, or choose regularization=none."
            )
        self.alpha = alpha

    def check(self, task: Task, model: TaskModel) -> None:
        """Checks that the task has class scores and the model has dropout.

        Raises:
            ConfigError: The task has no class scores, or the model has no dropout.
        """
        if not task.class_scores:
            raise ConfigError(
                f"{type(task).__name__} has no class scores. regularization=r_drop compares them. Choose "
                "regularization=none."
            )
        if not has_dropout(model):
            raise ConfigError(
                "the model has no dropout. regularization=r_drop compares passes that differ in dropout. Raise "
                "model.hidden_dropout, or choose regularization=none."
            )

    def weights(self, task: Task) -> dict[str, float]:
        """Returns the weights of the task's terms, and alpha for `r_drop`."""
        return {**task.loss_weights, TERM: self.alpha}

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64 on the batch's device; `r_drop` counts the targets of all outputs."""
        own = SumCountObjective(task.loss_weights).counts(batch)
        targets = [(batch.targets[labels] != IGNORE_INDEX).sum() for labels in task.class_scores.values()]
        total = torch.stack(targets).sum().double()
        return torch.cat([own.to(total.device, non_blocking=True), total[None]])

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs two forward passes and one backward pass; returns the sum of each term."""
        first, first_sums = passes.forward(batch, passes.dropout_keys(batch, pass_index=0))
        second, second_sums = passes.forward(batch, passes.dropout_keys(batch, pass_index=1))
        sums = {term: (first_sums[term] + second_sums[term]) / 2 for term in passes.task.loss_weights}
        divergences = [
            symmetric_divergence_sum(full_logits(first[name]), full_logits(second[name]), batch.targets[labels])
            for name, labels in passes.task.class_scores.items()
        ]
        sums[TERM] = torch.stack(divergences).sum()
        passes.backward(SumCountObjective(self.weights(passes.task)).loss(sums, counts), is_last)
        return sums


def symmetric_divergence_sum(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Returns (KL(p, q) + KL(q, p)) / 2, summed over targets.

    For each target this is the sum over classes of (p - q) (log p - log q) / 2.

    Args:
        first: (targets, classes) logits of p, any floating dtype; the arithmetic is fp32. More dims before the last are
            allowed.
        second: Logits of q.
        labels: (targets,) int64; a target with IGNORE_INDEX adds nothing.

    Returns:
        fp32 scalar.
    """
    log_p, log_q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    divergences = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1) / 2
    return torch.where(labels != IGNORE_INDEX, divergences, 0.0).sum()


def full_logits(logits: Tensor) -> Tensor:
    """Gathers logits of a decoder that is sharded over words; each rank's gradient is that of its own words."""
    return logits.full_tensor() if isinstance(logits, DTensor) else logits
