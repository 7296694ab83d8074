"""Packed self-attention on the CPU by batched matrix products, forward and backward.

Up to a few hundred tokens this beats `scaled_dot_product_attention`, whose CPU backward is made for long sequences.
Forward and backward in fp32 on one thread, 12 heads of 32 and 4,096 tokens: 56 ms instead of 74 in sequences of 128, as
long in sequences of 256, longer in sequences of 512. One sequence's scores stay in the cache, and the gradient has the
layout of the joint projection.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from framework.nn.rotary import rotate_into

MAX_LENGTH = 256
"""Longest sequence for which keeping its probabilities is faster and takes little memory."""


def score_bias(length: int, window: int | None, causal: bool, like: Tensor) -> Tensor | None:
    """(length, length): 0 where the query of the row sees the key of the column, else -inf; None where all is seen."""
    if not causal and (window is None or length <= window // 2 + 1):
        return None
    positions = torch.arange(length, device=like.device)
    distance = positions[:, None] - positions[None, :]
    hidden = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
    if window is not None:
        hidden = hidden | (distance.abs() > window // 2)
    return torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _spans(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _by_head(qkv: Tensor, rotary: tuple[Tensor, Tensor] | None, span: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one sequence, each (heads, length, head_dim)."""
    if rotary is None:
        query, key, value = qkv[span].permute(2, 1, 0, 3).unbind(0)
        return query, key, value
    straight = qkv[span, :, :2].permute(2, 1, 0, 3)
    turned = qkv.new_empty(straight.shape)
    rotate_into(turned, straight, rotary[0][span], rotary[1][span])
    return turned[0], turned[1], qkv[span, :, 2].transpose(0, 1)


class CpuPackedAttention(torch.autograd.Function):
    """`apply(qkv (tokens, heads, 3, head_dim), rotary, lengths, window, causal)` gives (tokens, heads, head_dim)."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        lengths: Sequence[int],
        window: int | None,
        causal: bool,
    ) -> Tensor:
        """Keeps the probabilities of each sequence where a gradient will be wanted."""
        num_tokens, num_heads, _, head_dim = qkv.shape
        scale = 1.0 / math.sqrt(head_dim)
        output = qkv.new_empty(num_tokens, num_heads, head_dim)
        scores_space = qkv.new_empty(num_heads * max(lengths) ** 2)
        biases = {length: score_bias(length, window, causal, qkv) for length in set(lengths)}
        kept = []
        with torch.autocast(qkv.device.type, enabled=False):
            for length, span in zip(lengths, _spans(lengths), strict=True):
                query, key, value = _by_head(qkv, rotary, span)
                scores = scores_space[: num_heads * length * length].view(num_heads, length, length)
                bias = biases[length]
                if bias is None:
                    torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scale, out=scores)
                else:
                    torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale, out=scores)
                probabilities = torch.softmax(scores, dim=-1)
                output[span] = torch.bmm(probabilities, value).transpose(0, 1)
                if ctx.needs_input_grad[0]:
                    kept.append(probabilities)
        ctx.save_for_backward(qkv, *(rotary or ()), *kept)
        ctx.has_rotary = rotary is not None
        ctx.lengths = lengths
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Gradient in the layout of qkv, the rotation undone."""
        qkv, *others = ctx.saved_tensors
        rotary = (others[0], others[1]) if ctx.has_rotary else None
        kept = others[2:] if ctx.has_rotary else others
        scale = 1.0 / math.sqrt(qkv.shape[-1])
        grad = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        num_heads, longest = qkv.shape[1], max(ctx.lengths)
        back = (rotary[0], -rotary[1]) if rotary is not None else None
        scores_space = qkv.new_empty(num_heads * longest**2)
        turned_space = qkv.new_empty(3 * num_heads * longest * qkv.shape[-1])
        with torch.autocast(qkv.device.type, enabled=False):
            for span, probabilities in zip(_spans(ctx.lengths), kept, strict=True):
                query, key, value = _by_head(qkv, rotary, span)
                grad_mixed = grad_output[span].transpose(0, 1)
                grad_scores = scores_space[: probabilities.numel()].view(probabilities.shape)
                turned = turned_space[: 3 * query.numel()].view(3, *query.shape)
                torch.bmm(probabilities.transpose(1, 2), grad_mixed, out=turned[2])
                torch.bmm(grad_mixed, value.transpose(1, 2), out=grad_scores)
                torch._softmax_backward_data(
                    grad_scores, probabilities, -1, probabilities.dtype, grad_input=grad_scores
                )
                torch.baddbmm(turned[0], grad_scores, key, beta=0, alpha=scale, out=turned[0])
                torch.baddbmm(turned[1], grad_scores.transpose(1, 2), query, beta=0, alpha=scale, out=turned[1])
                straight = grad[span].permute(2, 1, 0, 3)
                if back is None:
                    straight.copy_(turned)
                else:
                    rotate_into(straight[:2], turned[:2], back[0][span], back[1][span])
                    straight[2].copy_(turned[2])
        return grad, None, None, None, None
