"""Cross entropy summed over targets, for large vocabularies, in the fewest passes over the logits.

`torch.nn.functional.cross_entropy` writes three more arrays of the size of the logits (log-probabilities, the gradient
of the picked ones, the gradient); here the backward pass writes the one that is wanted, a block of rows at a time so
that a block stays in the cache. Forward and backward on one thread, fp32, 1,229 targets, 30,522 words: 166 ms instead
of 270.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from framework.constants import IGNORE_INDEX

_BLOCK_ELEMENTS = 1 << 18


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows; one slice for all rows where the device has no cache to speak of."""
    num_rows = logits.shape[0]
    size = max(1, _BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else max(1, num_rows)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_normalizers = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        for rows in _blocks(logits):
            log_normalizers[rows] = torch.logsumexp(logits[rows].float(), dim=1)
        counted = labels != IGNORE_INDEX
        picked = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, labels, log_normalizers)
        return torch.where(counted, log_normalizers - picked, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels, log_normalizers = ctx.saved_tensors
        weights = torch.where(labels != IGNORE_INDEX, grad.float(), 0.0)[:, None]
        grad_logits = torch.empty_like(logits)
        for rows in _blocks(logits):
            in_place = grad_logits[rows] if logits.dtype == torch.float32 else None
            block = torch.sub(logits[rows].float(), log_normalizers[rows, None], out=in_place)
            block.exp_().mul_(weights[rows]).scatter_add_(1, labels[rows, None].clamp(min=0), -weights[rows])
            if in_place is None:
                grad_logits[rows] = block
        return grad_logits, None


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over targets of -log softmax(logits)[label].

    Args:
        logits: (targets, vocab), any floating dtype; the arithmetic is fp32.
        labels: (targets,) int64; a target with IGNORE_INDEX adds nothing.

    Returns:
        fp32 scalar; 0 where there is no target.
    """
    return _CrossEntropySum.apply(logits, labels)
