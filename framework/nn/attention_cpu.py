"""Packed self-attention on the CPU by batched matrix products, forward and backward.

Up to a few hundred tokens this is faster than `scaled_dot_product_attention`, whose CPU backward is written for long
sequences. Forward and backward in fp32 on one thread, 12 heads of 32 and 4,096 tokens, take 56 ms instead of 74 in
sequences of 128, the same time in sequences of 256, and more in sequences of 512. The scores of one sequence stay in
the cache, and the gradient has the layout of the joint projection.

For short sequences, the calls take longer than the products, above all in bf16, whose kernels are written for large
matrices. Sequences in bf16 and short sequences are therefore computed several at once, each padded to the next multiple
of 8. The scores of short sequences are fp32. Padding and dtype depend on the sequence alone, so the result does not
depend on the other sequences of the batch.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.autograd.function import once_differentiable

from framework.nn.rotary import rotate_into

MAX_LENGTH = 256
"""Length up to which it is faster to keep the probabilities, at little memory."""

SHORT_SIZE = 48 * 32
"""Length times head_dim up to which the scores are fp32, and sequences in fp32 are computed together.

Measured in bf16 with 12 heads of 32 and about 768 tokens, forward and backward on two threads: 2.5 ms instead of 6.7 in
sequences of 24, 3.1 instead of 4.4 in sequences of 48; with heads of 64, 4.0 instead of 8.2, and 5.5 either way. On one
thread the gain is half of that, and none at the limit. In fp32 both ways are within a fifth of each other. The other
way was one call for each sequence. Together in bf16, sequences of 64 take 10.1 ms instead of 17.5, of 128 14.0 instead
of 18.0, and of 200 19.1 instead of 20.8 (about 1,536 tokens, one thread).
"""

_PADDING_STEP = 8
_GROUP_BYTES = 1024
"""Tokens of a group times the bytes of a score, chosen so that the scores stay in the cache."""


@dataclass(frozen=True)
class _Group:
    """Sequences that are computed together. Each is padded to the same length with copies of its last token.

    Attributes:
        count: Number of sequences.
        length: Padded length of each sequence.
        dtype: Dtype of the scores and of all products.
        rows: (count * length,) rows of the packed tensor; None for one sequence without padding.
        targets: Like rows, but padding has the index of the row after the packed tensor.
        start: First row of the group.
        padding: (count, length) bool, True for padding; None: there is no padding.
        bias: (count, 1, 1 or length, length), 0 if a query attends to a key, else -inf; None: all attend to all.
    """

    count: int
    length: int
    dtype: torch.dtype
    rows: Tensor | None = None
    targets: Tensor | None = None
    start: int = 0
    padding: Tensor | None = None
    bias: Tensor | None = None

    def take(self, packed: Tensor) -> Tensor:
        """Returns (count, length, ...) of (tokens, ...): a view, or a copy with padding."""
        rows = packed[self.start : self.start + self.length] if self.rows is None else packed.index_select(0, self.rows)
        return rows.unflatten(0, (self.count, self.length))

    def put(self, packed: Tensor, values: Tensor) -> None:
        """Writes (count, length, ...) into (tokens + 1, ...). Padding is written to the last row."""
        if self.targets is None:
            packed[self.start : self.start + self.length] = values[0]
        else:
            packed.index_copy_(0, self.targets, values.to(packed.dtype).flatten(0, 1))


def _groups(
    lengths: tuple[int, ...], window: int | None, causal: bool, head_dim: int, dtype: torch.dtype
) -> tuple[_Group, ...]:
    """Groups sequences by padded length. In fp32, each sequence that is not short is a group of its own.

    Args:
        lengths: Lengths of all sequences.
        window: As in `attention`.
        causal: As in `attention`.
        head_dim: Channels of a head.
        dtype: Dtype of queries, keys and values, and of the scores of longer sequences. Scores of short sequences have
            at least fp32.
    """
    groups, together = [], defaultdict(list)
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        is_short = length * head_dim <= SHORT_SIZE
        if is_short or dtype.itemsize < torch.float32.itemsize:
            padded = -(-length // _PADDING_STEP) * _PADDING_STEP
            together[padded, _at_least_fp32(dtype) if is_short else dtype].append((start, length))
        else:
            bias = score_bias(length, window, causal, dtype)
            groups.append(_Group(1, length, dtype, start=start, bias=None if bias is None else bias[None, None]))
    for (padded, score_dtype), members in together.items():
        most = max(1, _GROUP_BYTES // (padded * score_dtype.itemsize))
        for first in range(0, len(members), most):
            part = members[first : first + most]
            groups.append(_padded_group(padded, part, sum(lengths), window, causal, score_dtype))
    return tuple(groups)


def _padded_group(
    padded: int,
    members: Sequence[tuple[int, int]],
    num_tokens: int,
    window: int | None,
    causal: bool,
    dtype: torch.dtype,
) -> _Group:
    starts, lengths = torch.tensor(members).T[:, :, None]
    positions = torch.arange(padded)
    padding = positions >= lengths
    own = torch.minimum(positions, lengths - 1)  # a padded query is a copy of the last one and attends to the same keys
    # Host numbers decide whether a bias is needed, so that compiled code does not branch on a tensor.
    is_padded = any(length < padded for _, length in members)
    is_limited = causal or (window is not None and padded > window // 2 + 1)
    hidden = padding[:, None]
    if is_limited:
        hidden = hidden | is_hidden(own[:, :, None] - positions, window, causal)
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return _Group(
        count=len(members),
        length=padded,
        dtype=dtype,
        rows=(starts + own).flatten(),
        targets=(starts + own).masked_fill(padding, num_tokens).flatten(),
        padding=padding if is_padded else None,
        bias=bias[:, None] if is_padded or is_limited else None,
    )


def is_hidden(distance: Tensor, window: int | None, causal: bool) -> Tensor:
    """Returns True if a query must not attend to the key that is `distance` tokens before it."""
    hidden = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
    return hidden if window is None else hidden | (distance.abs() > window // 2)


def score_bias(
    length: int, window: int | None, causal: bool, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Returns (length, length): 0 if the query (row) attends to the key (column), else -inf; None if all do."""
    if not causal and (window is None or length <= window // 2 + 1):
        return None
    positions = torch.arange(length, device=device)
    hidden = is_hidden(positions[:, None] - positions, window, causal)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _by_head(qkv: Tensor, rotary: tuple[Tensor, Tensor] | None, group: _Group) -> Tensor:
    """Returns rotated queries, keys and values (3, count * heads, length, head_dim) in the dtype of the scores."""
    parts = group.take(qkv).permute(3, 0, 2, 1, 4)
    if rotary is None:
        return parts.to(group.dtype).flatten(1, 2)
    rotated = torch.empty(parts.shape, dtype=group.dtype)
    rotate_into(rotated[:2], parts[:2], *(group.take(part)[:, None] for part in rotary))
    rotated[2] = parts[2]
    return rotated.flatten(1, 2)


_kept_groups = lru_cache(maxsize=4)(_groups)
"""Groups of the last lengths: all layers of a step and its backward pass use the same groups."""


def _groups_for(qkv: Tensor, lengths: tuple[int, ...], window: int | None, causal: bool) -> tuple[_Group, ...]:
    # Do not cache groups built under tracing or for fake tensors; a real step must not reuse them.
    is_real = not torch.compiler.is_compiling() and detect_fake_mode() is None
    return (_kept_groups if is_real else _groups)(lengths, window, causal, qkv.shape[-1], qkv.dtype)


class CpuPackedAttention(torch.autograd.Function):
    """`apply(qkv (tokens, heads, 3, head_dim), rotary, lengths, window, causal)` returns (tokens, heads, head_dim)."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        lengths: tuple[int, ...],
        window: int | None,
        causal: bool,
    ) -> Tensor:
        """Saves the inputs and probabilities of each group if a gradient is needed."""
        num_tokens, num_heads, _, head_dim = qkv.shape
        output = qkv.new_empty(num_tokens + 1, num_heads, head_dim)
        groups, kept = _groups_for(qkv, lengths, window, causal), []
        with torch.autocast(qkv.device.type, enabled=False):
            for group in groups:
                parts = _by_head(qkv, rotary, group)
                query, key, value = parts
                scores = query.new_empty(len(query), group.length, group.length)
                torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=1 / math.sqrt(head_dim), out=scores)
                if group.bias is not None:
                    scores.unflatten(0, (group.count, num_heads)).add_(group.bias)
                probabilities = torch.softmax(scores, dim=-1, out=scores)
                mixed = torch.bmm(probabilities, value).unflatten(0, (group.count, num_heads))
                group.put(output, mixed.transpose(1, 2))
                if ctx.needs_input_grad[0]:
                    kept += [parts, probabilities]
        ctx.save_for_backward(*(rotary or ()), *kept)
        ctx.has_rotary = rotary is not None
        ctx.groups = groups
        return output[:num_tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Returns the gradient in the layout of qkv, with the rotation reversed."""
        saved = ctx.saved_tensors
        rotary, kept = saved[: 2 * ctx.has_rotary], saved[2 * ctx.has_rotary :]
        num_tokens, num_heads, head_dim = grad_output.shape
        scale = 1.0 / math.sqrt(head_dim)
        grad = grad_output.new_empty(num_tokens + 1, num_heads, 3, head_dim)
        with torch.autocast(grad_output.device.type, enabled=False):
            for group, parts, probabilities in zip(ctx.groups, kept[::2], kept[1::2], strict=True):
                query, key, value = parts
                grad_mixed = group.take(grad_output).transpose(1, 2).to(parts.dtype)
                if group.padding is not None:
                    grad_mixed = grad_mixed.masked_fill(group.padding[:, None, :, None], 0.0)
                grad_mixed = grad_mixed.flatten(0, 1)
                rotated = torch.empty(parts.shape, dtype=parts.dtype)
                torch.bmm(probabilities.transpose(1, 2), grad_mixed, out=rotated[2])
                grad_scores = torch.bmm(grad_mixed, value.transpose(1, 2))
                torch._softmax_backward_data(
                    grad_scores, probabilities, -1, probabilities.dtype, grad_input=grad_scores
                )
                torch.baddbmm(rotated[0], grad_scores, key, beta=0, alpha=scale, out=rotated[0])
                torch.baddbmm(rotated[1], grad_scores.transpose(1, 2), query, beta=0, alpha=scale, out=rotated[1])
                unrotated = rotated.unflatten(1, (group.count, num_heads))
                if rotary:
                    rotated, unrotated = unrotated, torch.empty_like(unrotated)
                    cos, sin = (group.take(part)[:, None] for part in rotary)
                    rotate_into(unrotated[:2], rotated[:2], cos, -sin)
                    unrotated[2] = rotated[2]
                group.put(grad, unrotated.permute(1, 3, 2, 0, 4))
        return grad[:num_tokens], None, None, None, None
