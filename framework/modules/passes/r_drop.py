"""R-Drop (Liang et al. 2021, arXiv:2106.14448): two passes with different dropout are to predict the same."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.errors import ConfigError
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.nn.dropout import HashedDropout
from framework.tasks.task import Task, TaskModel

TERM = "r_drop"


class RDrop:
    """The task's terms averaged over two passes, and a term `r_drop`, the symmetric divergence between their outputs.

    As in section 2.2 and the authors' published code; equation 4 of the paper adds the two passes up instead of
    averaging them, so that its alpha is twice this one. Both forward passes come before the one backward pass, since
    the divergence needs both: a micro-batch takes twice the memory.

    Args:
        alpha: Weight of the divergence. It is divided by the number of targets of all outputs together.

    Raises:
        ConfigError: alpha is not above 0.
    """

    def __init__(self, alpha: float) -> None:
        if not alpha > 0:
            raise ConfigError(f"`regularization.alpha` is {alpha}, it must be above 0; choose regularization=none.")
        self.alpha = alpha

    def check(self, task: Task, model: TaskModel) -> None:
        """The task must give class scores, and the model have dropout.

        Raises:
            ConfigError: It does not.
        """
        if not task.class_scores:
            raise ConfigError(
                f"regularization=r_drop compares scores of classes, but {type(task).__name__} gives none; choose "
                "regularization=none."
            )
        if not any(isinstance(module, HashedDropout) and module.threshold for module in model.modules()):
            raise ConfigError(
                "regularization=r_drop compares passes that differ in dropout, but the model has none; raise "
                "model.hidden_dropout, or choose regularization=none."
            )

    def weights(self, task: Task) -> dict[str, float]:
        """Those of the task, and alpha."""
        return {**task.loss_weights, TERM: self.alpha}

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """(terms,) float64; of `r_drop`: the targets of all outputs, on the batch's device."""
        own = torch.tensor(SumCountObjective(task.loss_weights).counts(batch), dtype=torch.float64)
        targets = [(batch.targets[labels] != IGNORE_INDEX).sum() for labels in task.class_scores.values()]
        total = torch.stack(targets).sum().double()
        return torch.cat([own.to(total.device, non_blocking=True), total[None]])

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs two forward passes and one backward pass; returns the sum of each term."""
        first, first_sums = passes.forward(batch, passes.dropout_keys(batch, pass_index=0))
        second, second_sums = passes.forward(batch, passes.dropout_keys(batch, pass_index=1))
        sums = {term: (first_sums[term] + second_sums[term]) / 2 for term in passes.task.loss_weights}
        divergences = [
            symmetric_divergence_sum(whole(first[name]), whole(second[name]), batch.targets[labels])
            for name, labels in passes.task.class_scores.items()
        ]
        sums[TERM] = torch.stack(divergences).sum()
        passes.backward(SumCountObjective(self.weights(passes.task)).loss(sums, counts), is_last)
        return sums


def symmetric_divergence_sum(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """(KL(p, q) + KL(q, p)) / 2, that is the sum over classes of (p - q) (log p - log q) / 2, summed over targets.

    Args:
        first: (targets, classes) logits of p, any floating dtype; the arithmetic is fp32. More dims before the last are
            legal.
        second: Logits of q.
        labels: (targets,) int64; a target with IGNORE_INDEX adds nothing.

    Returns:
        fp32 scalar.
    """
    log_p, log_q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    divergences = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1) / 2
    return torch.where(labels != IGNORE_INDEX, divergences, 0.0).sum()


def whole(logits: Tensor) -> Tensor:
    """Logits of a decoder whose words are spread over ranks, put together; a rank's gradient is that of its words."""
    return logits.full_tensor() if isinstance(logits, DTensor) else logits
