"""Adversarial training of text (Miyato et al. 2017, arXiv:1605.07725): the loss at embeddings moved where it grows.

This is the paper's adversarial training (section 3.1, equations 1 to 3), known as the fast gradient method.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.errors import ConfigError
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.tasks.task import Task, TaskModel


class Adversarial:
    """The task's terms, and each of them once more at moved embeddings.

    A second forward and backward pass follows the first; a micro-batch takes the memory of one. What moves is the
    output of `TransformerEncoder.embed`: it is normalised already, as the paper's embeddings are, so that epsilon
    compares with it. Both passes have the same dropout, so that the direction is the gradient of the very function
    that is then evaluated beside it.

    The step's loss is sum over terms of task weight x (clean + weight x adversarial). The adversarial terms are
    `adversarial`, or `adversarial_TERM` where the task has several.

    Args:
        epsilon: L2 norm of what is added to a sequence, over all its tokens and channels.
        weight: Of the adversarial terms beside the clean ones.

    Raises:
        ConfigError: A value is not above 0.
    """

    def __init__(self, epsilon: float, weight: float = 1.0) -> None:
        for name, value in {"epsilon": epsilon, "weight": weight}.items():
            if not value > 0:
                raise ConfigError(
                    f"`regularization.{name}` is {value}, it must be above 0; choose regularization=none."
                )
        self.epsilon = epsilon
        self.weight = weight

    def check(self, task: Task, model: TaskModel) -> None:
        """Fits every task."""

    def weights(self, task: Task) -> dict[str, float]:
        """Those of the task, and those of its terms at moved embeddings."""
        return {**task.loss_weights, **self._adversarial_weights(task)}

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """(terms,) float64 on the host."""
        own = SumCountObjective(task.loss_weights).counts(batch)
        return torch.tensor([*own, *own], dtype=torch.float64)

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs forward and backward twice; returns the sum of each term."""
        dropout_keys = passes.dropout_keys(batch)
        clean_counts, adversarial_counts = counts.chunk(2)
        shape = (batch.input_ids.shape[0], passes.model.encoder.config.hidden_size)
        still = torch.zeros(shape, device=batch.input_ids.device, requires_grad=True)
        _, clean = passes.forward(batch, dropout_keys, still)
        passes.backward(SumCountObjective(passes.task.loss_weights).loss(clean, clean_counts), is_last=False)
        assert still.grad is not None
        offset = perturbation(still.grad, batch, self.epsilon)

        _, moved = passes.forward(batch, dropout_keys, offset)
        weights = self._adversarial_weights(passes.task)
        adversarial = {name: moved[term] for name, term in zip(weights, passes.task.loss_weights, strict=True)}
        passes.backward(SumCountObjective(weights).loss(adversarial, adversarial_counts), is_last)
        return {**clean, **adversarial}

    def _adversarial_weights(self, task: Task) -> dict[str, float]:
        is_single = len(task.loss_weights) == 1
        return {
            "adversarial" if is_single else f"adversarial_{term}": self.weight * weight
            for term, weight in task.loss_weights.items()
        }


def perturbation(gradient: Tensor, batch: PackedBatch, epsilon: float) -> Tensor:
    """Epsilon times the gradient's direction, for each sequence by itself, so that it does not show what is beside it.

    A factor on the gradient, such as the loss scale of fp16, changes nothing. A sequence whose gradient is zero or not
    finite stays where it is: fp16's overflow then shows in the gradients of the weights, as without a perturbation.

    Args:
        gradient: (tokens, hidden) fp32, of the embeddings.
        batch: Gives the sequences.
        epsilon: L2 norm of each sequence's perturbation.

    Returns:
        (tokens, hidden) fp32.
    """
    num_tokens, num_sequences = gradient.shape[0], len(batch.lengths)
    sequences = torch.arange(num_sequences, device=gradient.device)
    sequence_of = torch.repeat_interleave(sequences, batch.cu_seqlens.diff(), output_size=num_tokens)
    squares = torch.linalg.vector_norm(gradient, dim=1).double().square()
    norms = squares.new_zeros(num_sequences).index_add(0, sequence_of, squares).sqrt()
    moves = torch.isfinite(norms) & (norms > 0)
    scales = (epsilon / norms).float()
    return torch.where(moves[sequence_of, None], gradient * scales[sequence_of, None], 0.0)
