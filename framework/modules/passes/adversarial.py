"""Adversarial training of text (Miyato et al. 2017, arXiv:1605.07725).

The loss is also computed at embeddings that are perturbed in the direction of its gradient. This is the paper's
adversarial training (section 3.1, equations 1 to 3), known as the fast gradient method.
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
    """Regularization that adds each loss term of the task once more at perturbed embeddings.

    A second forward and backward pass follows the first one, so a micro-batch needs only the memory of a single pass.
    The perturbation is added to the output of `TransformerEncoder.embed`. This output is normalised, as the paper's
    embeddings are, so that epsilon is comparable. Both passes use the same dropout, so the direction is the gradient of
    the function that the second pass evaluates.

    The step's loss is the sum over terms of task weight x (clean + weight x adversarial). The adversarial terms are
    named `adversarial`, or `adversarial_TERM` if the task has several.

    Args:
        epsilon: L2 norm of the perturbation of a sequence, over all its tokens and channels.
        weight: Weight of the adversarial terms relative to the clean ones.

    Raises:
        ConfigError: A value is not above 0.
    """

    def __init__(self, epsilon: float, weight: float = 1.0) -> None:
        for name, value in {"epsilon": epsilon, "weight": weight}.items():
            if not value > 0:
                raise ConfigError(
                    f"`regularization.{name}` is {value}. It must be above 0. Raise it, or choose regularization=none."
                )
        self.epsilon = epsilon
        self.weight = weight

    def check(self, task: Task, model: TaskModel) -> None:
        """Accepts every task and model."""

    def weights(self, task: Task) -> dict[str, float]:
        """Returns the weights of the task's terms, and of the same terms at perturbed embeddings."""
        return {**task.loss_weights, **self._adversarial_weights(task)}

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64 counts of one micro-batch on the host."""
        return SumCountObjective(task.loss_weights).counts(batch).repeat(2)

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs the forward and backward pass twice; returns the sum of each term."""
        dropout_keys = passes.dropout_keys(batch)
        clean_counts, adversarial_counts = counts.chunk(2)
        shape = (batch.input_ids.shape[0], passes.model.encoder.config.hidden_size)
        zero_offset = torch.zeros(shape, device=batch.input_ids.device, requires_grad=True)
        _, clean = passes.forward(batch, dropout_keys, zero_offset)
        passes.backward(SumCountObjective(passes.task.loss_weights).loss(clean, clean_counts), is_last=False)
        assert zero_offset.grad is not None
        offset = perturbation(zero_offset.grad, batch, self.epsilon)

        _, perturbed = passes.forward(batch, dropout_keys, offset)
        weights = self._adversarial_weights(passes.task)
        adversarial = {name: perturbed[term] for name, term in zip(weights, passes.task.loss_weights, strict=True)}
        passes.backward(SumCountObjective(weights).loss(adversarial, adversarial_counts), is_last)
        return {**clean, **adversarial}

    def _adversarial_weights(self, task: Task) -> dict[str, float]:
        is_single = len(task.loss_weights) == 1
        return {
            "adversarial" if is_single else f"adversarial_{term}": self.weight * weight
            for term, weight in task.loss_weights.items()
        }


def perturbation(gradient: Tensor, batch: PackedBatch, epsilon: float) -> Tensor:
    """Returns epsilon times the normalized gradient of each sequence.

    Each sequence is normalized separately, so the result does not depend on the packing. A factor on the gradient, such
    as the loss scale of fp16, changes nothing. A sequence with a zero or non-finite gradient is not perturbed; an
    overflow of fp16 then appears in the gradients of the weights, as without a perturbation.

    Args:
        gradient: (tokens, hidden) fp32, gradient of the embeddings.
        batch: Micro-batch with the offsets of the sequences.
        epsilon: L2 norm of each sequence's perturbation.

    Returns:
        (tokens, hidden) fp32.
    """
    num_tokens, num_sequences = gradient.shape[0], len(batch.lengths)
    sequences = torch.arange(num_sequences, device=gradient.device)
    sequence_of = torch.repeat_interleave(sequences, batch.cu_seqlens.diff(), output_size=num_tokens)
    squares = torch.linalg.vector_norm(gradient, dim=1).double().square()
    norms = squares.new_zeros(num_sequences).index_add(0, sequence_of, squares).sqrt()
    is_perturbed = torch.isfinite(norms) & (norms > 0)
    scales = (epsilon / norms).float()
    return torch.where(is_perturbed[sequence_of, None], gradient * scales[sequence_of, None], 0.0)
