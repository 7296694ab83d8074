"""Dropout, residual sum and layer norm as one Triton kernel forward and one backward.

The operators they replace read and write each channel of a token three times as often. Statistics, sum and gradients of
the sum are fp32. Gradients of weight and bias are summed over tokens in a fixed order, so that they are reproducible.
This module requires Triton, which is part of PyTorch for CUDA.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton functions have their own types.
#
# Arguments of both kernels; all tensors are contiguous, and those without their flag are neither read nor written:
#   branch, residual: (tokens, channels). dropout_keys: (tokens,) int64, with has_dropout.
#   weight, bias: (channels,); bias with has_bias.
#   sums: (tokens, channels) fp32, residual + branch * mask; returned with has_sums.
#   normed: (tokens, channels) fp32, the norm of sums, with has_normed. operand: the same in half precision, with
#   has_operand.
#   statistics: (tokens, 2) fp32, mean and reciprocal standard deviation of sums.
#   grad_NAME: gradient of NAME. grad_parameters: (programs, 2, channels) fp32, sums for weight and bias.
#   threshold, site_key: as in `kept_lanes`. scale: factor of kept channels.
#   words: words of four channels per token, rounded up to a power of 2.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from framework.nn.dropout import HashedDropout
from framework.nn.dropout_cuda import kept_lanes

_CHANNELS_OF_WORD = tl.constexpr(4)
_MOST_PROGRAMS, _TOKENS_OF_PROGRAM = 528, 4
"""Limits of the backward pass: four programs for each of the 132 multiprocessors of an H100 or H200, and at least four
tokens each, since every program writes its own sums for weight and bias."""


@triton.jit
def _mean(x, num_channels):
    """Returns the mean of (words, 4), which are 0 beyond the channels."""
    return tl.sum(tl.sum(x, 1), 0) / num_channels


@triton.jit(do_not_specialize=["threshold"])
def _forward_kernel(
    branch,
    dropout_keys,
    residual,
    weight,
    bias,
    sums,
    normed,
    operand,
    statistics,
    threshold,
    scale,
    eps,
    num_channels: tl.constexpr,
    site_key: tl.constexpr,
    has_dropout: tl.constexpr,
    has_bias: tl.constexpr,
    has_normed: tl.constexpr,
    has_operand: tl.constexpr,
    words: tl.constexpr,
):
    """Writes the results of one token per program."""
    token = tl.program_id(0).to(tl.int64)
    word = tl.arange(0, words).to(tl.int64)
    lane = tl.arange(0, _CHANNELS_OF_WORD)[None, :]
    channel = word[:, None] * _CHANNELS_OF_WORD + lane
    is_channel = channel < num_channels
    offset = token * num_channels + channel
    value = tl.load(branch + offset, is_channel, 0.0).to(tl.float32)
    if has_dropout:
        kept = kept_lanes(tl.load(dropout_keys + token), word, lane, threshold, site_key)
        value = tl.where(kept, value * scale, 0.0)
    value += tl.load(residual + offset, is_channel, 0.0).to(tl.float32)
    tl.store(sums + offset, value, is_channel)

    mean = _mean(value, num_channels)
    centred = tl.where(is_channel, value - mean, 0.0)
    factor = 1.0 / tl.sqrt(_mean(centred * centred, num_channels) + eps)
    tl.store(statistics + 2 * token, mean)
    tl.store(statistics + 2 * token + 1, factor)
    out = centred * factor * tl.load(weight + channel, is_channel, 0.0).to(tl.float32)
    if has_bias:
        out += tl.load(bias + channel, is_channel, 0.0).to(tl.float32)
    if has_normed:
        tl.store(normed + offset, out, is_channel)
    if has_operand:
        tl.store(operand + offset, out.to(operand.dtype.element_ty), is_channel)


@triton.jit(do_not_specialize=["threshold", "num_tokens"])
def _backward_kernel(
    grad_sums,
    grad_normed,
    grad_operand,
    dropout_keys,
    sums,
    statistics,
    weight,
    grad_branch,
    grad_residual,
    grad_parameters,
    threshold,
    scale,
    num_tokens,
    num_channels: tl.constexpr,
    site_key: tl.constexpr,
    has_dropout: tl.constexpr,
    has_sums: tl.constexpr,
    has_normed: tl.constexpr,
    has_operand: tl.constexpr,
    words: tl.constexpr,
):
    """Writes the gradients of every n-th token, n being the number of programs."""
    program = tl.program_id(0)
    word = tl.arange(0, words).to(tl.int64)
    lane = tl.arange(0, _CHANNELS_OF_WORD)[None, :]
    channel = word[:, None] * _CHANNELS_OF_WORD + lane
    is_channel = channel < num_channels
    slope = tl.load(weight + channel, is_channel, 0.0).to(tl.float32)
    grad_weight = tl.zeros([words, _CHANNELS_OF_WORD], tl.float32)
    grad_bias = tl.zeros([words, _CHANNELS_OF_WORD], tl.float32)
    for index in range(program, num_tokens, tl.num_programs(0)):
        token = tl.cast(index, tl.int64)
        offset = token * num_channels + channel
        grad = tl.zeros([words, _CHANNELS_OF_WORD], tl.float32)
        if has_normed:
            grad += tl.load(grad_normed + offset, is_channel, 0.0).to(tl.float32)
        if has_operand:
            grad += tl.load(grad_operand + offset, is_channel, 0.0).to(tl.float32)
        mean, factor = tl.load(statistics + 2 * token), tl.load(statistics + 2 * token + 1)
        standard = tl.where(is_channel, (tl.load(sums + offset, is_channel, 0.0) - mean) * factor, 0.0)
        grad_weight += grad * standard
        grad_bias += grad
        grad *= slope
        grad = factor * (grad - standard * _mean(grad * standard, num_channels) - _mean(grad, num_channels))
        if has_sums:
            grad += tl.load(grad_sums + offset, is_channel, 0.0).to(tl.float32)
        tl.store(grad_residual + offset, grad.to(grad_residual.dtype.element_ty), is_channel)
        if has_dropout:
            kept = kept_lanes(tl.load(dropout_keys + token), word, lane, threshold, site_key)
            grad = tl.where(kept, grad * scale, 0.0)
        tl.store(grad_branch + offset, grad.to(grad_branch.dtype.element_ty), is_channel)
    target = grad_parameters + program.to(tl.int64) * 2 * num_channels + channel
    tl.store(target, grad_weight, is_channel)
    tl.store(target + num_channels, grad_bias, is_channel)


class _ResidualNorm(torch.autograd.Function):
    """Computes the sum and its norm. Only requested outputs are returned, since each costs a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dropout_keys: Tensor | None,
        threshold: int,
        scale: float,
        site_key: int,
        eps: float,
        has_sums: bool,
        has_normed: bool,
        has_operand: bool,
    ) -> tuple[Tensor, ...]:
        """Applies `_forward_kernel`; returns sums, normed and operand, as far as requested."""
        tokens, channels = branch.shape
        branch, residual = branch.contiguous(), residual.contiguous()
        sums = torch.empty_like(branch, dtype=torch.float32)
        statistics = sums.new_empty((tokens, 2))
        # Kernels get any tensor in place of one that they neither read nor write.
        normed = torch.empty_like(sums) if has_normed else weight
        operand = torch.empty_like(branch) if has_operand else weight
        has_dropout = dropout_keys is not None
        keys = dropout_keys if has_dropout else weight
        if tokens:
            _forward_kernel[(tokens,)](
                *(branch, keys, residual),
                *(weight, weight if bias is None else bias, sums, normed, operand, statistics),
                *(threshold, scale, eps),
                num_channels=channels,
                site_key=site_key,
                has_dropout=has_dropout,
                has_bias=bias is not None,
                has_normed=has_normed,
                has_operand=has_operand,
                words=_words(channels),
            )
        ctx.save_for_backward(sums, statistics, weight, keys)
        ctx.has_dropout = has_dropout
        ctx.draw = (threshold, scale, site_key)
        ctx.outputs = (has_sums, has_normed, has_operand)
        ctx.dtypes = (branch.dtype, residual.dtype)
        ctx.bias_dtype = None if bias is None else bias.dtype
        requested = ((sums, has_sums), (normed, has_normed), (operand, has_operand))
        return tuple(output for output, is_requested in requested if is_requested)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of branch, residual, weight and bias."""
        sums, statistics, weight, keys = ctx.saved_tensors
        threshold, scale, site_key = ctx.draw
        has_sums, has_normed, has_operand = ctx.outputs
        given = [grad.contiguous() for grad in grads]
        grad_sums = given.pop(0) if has_sums else weight
        grad_normed = given.pop(0) if has_normed else weight
        grad_operand = given.pop(0) if has_operand else weight
        tokens, channels = sums.shape
        grad_branch, grad_residual = (torch.empty_like(sums, dtype=dtype) for dtype in ctx.dtypes)
        programs = min(_MOST_PROGRAMS, -(-tokens // _TOKENS_OF_PROGRAM))
        parameters = sums.new_empty((programs, 2, channels))
        if tokens:
            _backward_kernel[(programs,)](
                *(grad_sums, grad_normed, grad_operand, keys),
                *(sums, statistics, weight, grad_branch, grad_residual, parameters),
                *(threshold, scale, tokens),
                num_channels=channels,
                site_key=site_key,
                has_dropout=ctx.has_dropout,
                has_sums=has_sums,
                has_normed=has_normed,
                has_operand=has_operand,
                words=_words(channels),
            )
        grad_weight, grad_bias = parameters.sum(dim=0).unbind()
        grad_bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
        return grad_branch, grad_residual, grad_weight.to(weight.dtype), grad_bias, *(None,) * 8


def _words(channels: int) -> int:
    return 1 << (-(-channels // 4) - 1).bit_length()


def fused_residual_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dropout: HashedDropout,
    dropout_keys: Tensor | None,
    outputs: tuple[str, ...],
) -> dict[str, Tensor]:
    """Applies the kernel; see `norm.ResidualNorm` for the arguments. Returns the requested results by name."""
    # In fp32 linear layers cast nothing, and read the norm itself.
    is_half = branch.dtype in (torch.bfloat16, torch.float16)
    has_operand = is_half and "operand" in outputs
    has_normed = "normed" in outputs or ("operand" in outputs and not is_half)
    written = {"sum": "sum" in outputs, "normed": has_normed, "operand": has_operand}
    keys = dropout_keys if dropout.threshold else None
    tensors = _ResidualNorm.apply(branch, residual, weight, bias, keys, *dropout.draw, eps, *written.values())
    names = [name for name, is_written in written.items() if is_written]
    results = dict(zip(names, tensors, strict=True))
    if "operand" in outputs and not has_operand:
        results["operand"] = results["normed"]
    return results
