"""Hashed dropout as one Triton kernel, which draws the mask in registers and redraws it for the gradient.

The masks equal those of `dropout.dropout_mask`, which takes about twenty kernels per site and memory for an fp32 mask.
This module requires Triton, which is part of PyTorch for CUDA.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton functions have their own types.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_WORDS = 256
"""Number of 64-bit words per program."""

_GOLDEN = tl.constexpr(-7046029254386353131)
_MULTIPLIER_1 = tl.constexpr(-4658895280553007687)
_MULTIPLIER_2 = tl.constexpr(-7723592293110705685)
_LANES = tl.constexpr(4)


@triton.jit
def _mix(x):
    """Computes `dropout._mix`: SplitMix64 with logical shifts."""
    x = x + _GOLDEN
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MULTIPLIER_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MULTIPLIER_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def kept_lanes(key, word, lane, threshold, site_key: tl.constexpr):
    """Returns (words, 4) True for the channels that `dropout.dropout_mask` keeps.

    Args:
        key: Dropout key of the token, for each word or for all.
        word: (words,) int64 index of the word within its token.
        lane: (1, 4) index of a channel in its word.
        threshold: A channel is kept if its 15 bits are not below it.
        site_key: int64 constant: a model has few sites, and inductor takes a negative argument for an int32.
    """
    bits = _mix(key ^ site_key) + (word + 1) * _GOLDEN
    bits = (bits ^ (bits >> 30)) * _MULTIPLIER_1
    bits = (bits ^ (bits >> 27)) * _MULTIPLIER_2
    bits = bits ^ (bits >> 31)
    return ((bits[:, None] >> (16 * lane).to(tl.int64)) & 0x7FFF) >= threshold


@triton.jit(do_not_specialize=["threshold", "num_words"])
def _kernel(
    x,
    dropout_keys,
    residual,
    out,
    threshold,
    scale,
    num_words,
    num_channels,
    site_key: tl.constexpr,
    has_residual: tl.constexpr,
    words: tl.constexpr,
):
    """Writes out = x * mask (+ residual) for `words` words. Each word decides four channels of a token.

    Args:
        x: (tokens, channels), contiguous.
        dropout_keys: (tokens,) int64.
        residual: Tensor like x; not read without has_residual.
        out: Tensor like x.
        threshold: As in `kept_lanes`.
        scale: Factor of kept channels.
        num_words: Number of words of all tokens.
        num_channels: Number of channels of a token.
        site_key: As in `kept_lanes`.
        has_residual: True if there is a residual.
        words: Number of words per program.
    """
    word = tl.program_id(0).to(tl.int64) * words + tl.arange(0, words)
    words_of_token = (num_channels + _LANES - 1) // _LANES
    token, index = word // words_of_token, word % words_of_token
    is_word = word < num_words
    lane = tl.arange(0, _LANES)[None, :]
    channel = index[:, None] * _LANES + lane
    is_channel = is_word[:, None] & (channel < num_channels)
    offset = token[:, None] * num_channels + channel
    kept = kept_lanes(tl.load(dropout_keys + token, is_word, 0), index, lane, threshold, site_key)
    value = tl.where(kept, tl.load(x + offset, is_channel, 0.0).to(tl.float32) * scale, 0.0)
    if has_residual:
        value += tl.load(residual + offset, is_channel, 0.0).to(tl.float32)
    tl.store(out + offset, value.to(out.dtype.element_ty), is_channel)


class FusedDropout(torch.autograd.Function):
    """Computes x times its mask, plus the residual if given, in one pass forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropout_keys: Tensor, residual: Tensor | None, threshold: int, scale: float, site_key: int
    ) -> Tensor:
        """Applies the kernel; see `HashedDropout` for the arguments, and `_kernel` for scale and site_key."""
        ctx.save_for_backward(dropout_keys)
        ctx.draw = (threshold, scale, site_key)
        ctx.x_dtype = x.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        out = torch.empty_like(
            x, dtype=x.dtype if residual is None else torch.float32, memory_format=torch.contiguous_format
        )
        return _run(x, dropout_keys, residual, out, *ctx.draw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x and of the residual."""
        (dropout_keys,) = ctx.saved_tensors
        grad_x = torch.empty_like(grad, dtype=ctx.x_dtype, memory_format=torch.contiguous_format)
        _run(grad, dropout_keys, None, grad_x, *ctx.draw)
        grad_residual = None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype)
        return grad_x, None, grad_residual, None, None, None


def _run(
    x: Tensor, dropout_keys: Tensor, residual: Tensor | None, out: Tensor, threshold: int, scale: float, site_key: int
) -> Tensor:
    num_channels = x.shape[1]
    num_words = x.shape[0] * -(-num_channels // 4)
    if num_words:
        grid = (-(-num_words // _WORDS),)
        added = x if residual is None else residual.contiguous()
        arguments = (x.contiguous(), dropout_keys, added, out, threshold, scale, num_words, num_channels)
        _kernel[grid](*arguments, site_key=site_key, has_residual=residual is not None, words=_WORDS)
    return out
