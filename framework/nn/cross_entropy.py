"""Cross entropy summed over targets, for large vocabularies, with few passes over the logits.

`torch.nn.functional.cross_entropy` writes three more arrays of the size of the logits: the log-probabilities, the
gradient of the selected ones, and the gradient. Here the backward pass writes only the gradient, block by block, so
that a block of rows stays in the cache. Forward and backward on one thread in fp32 with 1,229 targets and 30,522 words
take 166 ms instead of 270. The normalizers (the log-sum-exp of each row) are by-products that other losses use.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from framework.batch import IGNORE_INDEX

_BLOCK_ELEMENTS = 1 << 18


def at_least_fp32(values: Tensor) -> Tensor:
    """Returns values of a lower precision in fp32, and others unchanged: small losses may be wanted in float64."""
    return values if values.dtype == torch.float64 else values.float()


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Yields slices of rows that fit into the cache of a CPU; other devices get one slice for all rows."""
    num_rows = logits.shape[0]
    size = max(1, _BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else max(1, num_rows)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def log_normalizers(logits: Tensor) -> Tensor:
    """Returns the log-sum-exp of each row: (targets, vocab) to (targets,) fp32."""
    result = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    for rows in _blocks(logits):
        result[rows] = torch.logsumexp(logits[rows].float(), dim=1)
    return result


def logit_gradient(
    logits: Tensor, normalizers: Tensor, softmax_weights: Tensor, columns: Tensor, column_weights: Tensor
) -> Tensor:
    """Returns softmax_weight * softmax for each row, minus column_weight in one column.

    Args:
        logits: (targets, vocab).
        normalizers: (targets,) fp32 from `log_normalizers`.
        softmax_weights: (targets,) fp32.
        columns: (targets,) int64.
        column_weights: (targets,) fp32.

    Returns:
        Like logits.
    """
    gradient = torch.empty_like(logits)
    for rows in _blocks(logits):
        in_place = gradient[rows] if logits.dtype == torch.float32 else None
        block = torch.sub(logits[rows].float(), normalizers[rows, None], out=in_place)
        block.exp_().mul_(softmax_weights[rows, None]).scatter_add_(1, columns[rows, None], -column_weights[rows, None])
        if in_place is None:
            gradient[rows] = block
    return gradient


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        normalizers = log_normalizers(logits)
        picked = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, labels, normalizers)
        return torch.where(labels != IGNORE_INDEX, normalizers - picked, 0.0).sum(), normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, normalizer_grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, normalizers = ctx.saved_tensors
        weights = torch.where(labels != IGNORE_INDEX, grad.float(), 0.0)
        # The gradient of log-sum-exp is the softmax, which the cross entropy needs too.
        gradient = logit_gradient(logits, normalizers, weights + normalizer_grads, labels.clamp(min=0), weights)
        return gradient, None


@functools.singledispatch
def cross_entropy_and_normalizers(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the parts of every loss over a vocabulary. Other types of logits register their own implementation.

    Args:
        logits: (targets, vocab), any floating dtype; the arithmetic is fp32.
        labels: (targets,) int64; targets with IGNORE_INDEX add nothing.

    Returns:
        Sum over targets of -log softmax(logits)[label] as an fp32 scalar, 0 without targets, and the log-sum-exp of
        each row, (targets,) fp32. Both have gradients.
    """
    return _CrossEntropySum.apply(logits, labels)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the first result of `cross_entropy_and_normalizers`."""
    return cross_entropy_and_normalizers(logits, labels)[0]


def cross_entropy_and_z_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross entropy and the z-loss: the square of log Z, where Z is the sum of the exponentiated logits.

    The z-loss keeps logits from drifting, because softmax ignores a constant added to all logits (Chowdhery et al.
    2022, "PaLM", arXiv:2204.02311, section 5). It uses the normalizers of the cross entropy and needs no further pass
    over the logits.

    Args:
        logits: (targets, vocab), any floating dtype; the arithmetic is fp32.
        labels: (targets,) int64; targets with IGNORE_INDEX add nothing.

    Returns:
        Sums over targets as fp32 scalars, 0 without targets.
    """
    loss, normalizers = cross_entropy_and_normalizers(logits, labels)
    return loss, torch.where(labels != IGNORE_INDEX, normalizers.square(), 0.0).sum()


def cross_entropy_and_uniform_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross entropy with the labels, and with the uniform distribution over all words.

    (1 - e) times the first plus e times the second is label smoothing by e (Szegedy et al. 2016, arXiv:1512.00567,
    section 7, with a uniform prior over words).

    Args:
        logits: (targets, vocab), any floating dtype; the arithmetic is fp32.
        labels: (targets,) int64; targets with IGNORE_INDEX add nothing.

    Returns:
        Sums over targets as fp32 scalars, 0 without targets.
    """
    loss, normalizers = cross_entropy_and_normalizers(logits, labels)
    uniform = normalizers - logits.mean(dim=1, dtype=torch.float32)
    return loss, torch.where(labels != IGNORE_INDEX, uniform, 0.0).sum()
