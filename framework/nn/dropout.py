"""Dropout whose mask is a hash of (seed, step, pass, sequence, position, layer, site, channel).

The mask of a token does not depend on where the token lies in which micro-batch on which rank, and computing a layer
again gives it again, so that no generator state is kept anywhere. The hash is SplitMix64 (Steele, Lea, Flood 2014):
each token's key starts a stream, and each 64-bit output decides four channels, 15 bits each.
"""

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.autograd.function import once_differentiable

from framework.batch import PackedBatch
from framework.random import GOLDEN, MULTIPLIER_1, MULTIPLIER_2, key

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_LANES = 4
_RESOLUTION = 1 << 15
_GOLDEN_INVERSE = pow(GOLDEN, -1, 1 << 64)
_NO_LAYER = -1
"""Part of every site's key. The layer is part of the token keys (`layer_keys`)."""


def _signed(value: int) -> int:
    """The int64 that has the same 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _in_each_lane(value: int) -> int:
    """A word whose four 16-bit lanes hold the value."""
    return _signed(value * 0x0001000100010001)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift (torch shifts int64 arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """`framework.random.mix` with base 0, on int64 tensors."""
    x = x + _signed(GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * _signed(MULTIPLIER_2)
    return x ^ _shift_right(x, 31)


def token_keys(seed: int, step: int, pass_index: int, batch: PackedBatch) -> Tensor:
    """The dropout key of each token.

    Args:
        seed: The run's seed.
        step: Optimizer steps completed before this one.
        pass_index: Which forward pass over the same data within the step (0 where there is only one).
        batch: Gives sequence ids and positions.

    Returns:
        (tokens,) int64, on the batch's device.
    """
    base = _signed(key(seed, "dropout", step, pass_index))
    sequence_keys = _mix(batch.sequence_ids ^ base)
    lengths = batch.cu_seqlens.diff()
    num_tokens = batch.position_ids.shape[0]
    return _mix(torch.repeat_interleave(sequence_keys, lengths, output_size=num_tokens) ^ batch.position_ids)


def decoder_keys(dropout_keys: Tensor | None, batch: PackedBatch) -> Tensor | None:
    """The dropout key of each token that a decoder reads.

    A function of what `token_keys` is one of, by way of the key of the sequence's first token, and of the position in
    the decoder.

    Args:
        dropout_keys: (tokens,) int64 of the batch's own tokens; None switches dropout off.
        batch: With `decoder_inputs`.

    Returns:
        (tokens of decoder_inputs,) int64.
    """
    if dropout_keys is None:
        return None
    assert batch.decoder_inputs is not None
    sequence_keys = _mix(dropout_keys[batch.cu_seqlens[:-1]] ^ _signed(key("decoder")))
    positions = batch.decoder_inputs.position_ids
    lengths = batch.decoder_inputs.cu_seqlens.diff()
    return _mix(torch.repeat_interleave(sequence_keys, lengths, output_size=positions.shape[0]) ^ positions)


def _is_little_endian_cpu(x: Tensor) -> bool:
    """Whether lane 0 comes first in memory and looking at it there is cheapest (a compiler would rather see shifts)."""
    return x.device.type == "cpu" and sys.byteorder == "little"


def layer_keys(dropout_keys: Tensor | None, num_layers: int) -> Sequence[Tensor | None]:
    """The keys of each layer of a stack, each a function of the token's key and the layer's index.

    Equal layers get their keys from outside, so that they stay equal: with the index inside, each would be compiled
    anew. Those of all layers are drawn at once; one after another they were a tenth of the kernels of a step.

    Args:
        dropout_keys: (tokens,) int64; None switches dropout off.
        num_layers: Layers of the stack.

    Returns:
        For each layer (tokens,) int64, or None.
    """
    if dropout_keys is None:
        return [None] * num_layers
    of_layers = [dropout_keys ^ _signed(key("dropout layer", layer)) for layer in range(num_layers)]
    return _mix(torch.stack(of_layers)).unbind()


def _scale(threshold: int) -> float:
    """By what the channels that are kept are multiplied."""
    return 1.0 / (1.0 - threshold / _RESOLUTION)


def dropout_mask(dropout_keys: Tensor, num_channels: int, threshold: int, site_key: int) -> Tensor:
    """Draws which channels of each token are kept, and by what they are multiplied.

    All passes work in place on 64-bit words, four channels each; only the last one touches one number a channel. Torch
    shifts int64 arithmetically where SplitMix64 shifts logically, which is as good a hash except for the highest bit of
    a word; no lane uses that one.

    Args:
        dropout_keys: (tokens,) int64.
        num_channels: Channels of a token.
        threshold: A channel is dropped with probability threshold / 2**15.
        site_key: 64-bit key of the layer and the site.

    Returns:
        (tokens, num_channels) fp32: 0 where dropped, else 1 / (1 - threshold / 2**15).
    """
    num_words = -(-num_channels // _LANES)
    streams = _mix(dropout_keys ^ _signed(site_key))
    # Word i of a stream is stream + i * golden, here as (stream / golden + i) * golden: inductor takes a number times a
    # range for an index, and then makes kernels whose factor does not fit 32 bits.
    words = (streams * _signed(_GOLDEN_INVERSE)).unsqueeze(1) + torch.arange(1, num_words + 1, device=streams.device)
    words.mul_(_signed(GOLDEN))
    for bits, multiplier in ((30, MULTIPLIER_1), (27, MULTIPLIER_2)):
        words.bitwise_xor_(words >> bits).mul_(_signed(multiplier))
    words.bitwise_xor_(words >> 31)
    # In each 16-bit lane: 15 random bits plus (2**15 - threshold) reach bit 15 exactly where the bits are >= threshold.
    words.bitwise_and_(_in_each_lane(0x7FFF)).add_(_in_each_lane(0x8000 - threshold))
    words.bitwise_right_shift_(15).bitwise_and_(_in_each_lane(1))
    if _is_little_endian_cpu(words):
        keep = words.view(torch.int16)
    else:
        # Shifts by numbers: with a tensor of them torch 2.13's inductor made wrong masks on the CPU.
        keep = torch.stack([(words >> 16 * lane) & 1 for lane in range(_LANES)], dim=2).flatten(1)
    return keep.narrow(1, 0, num_channels).to(torch.float32).mul_(_scale(threshold))


def _has_kernel(x: Tensor) -> bool:
    """Whether a kernel of our own does it at once, also within compiled layers; fake tensors have no memory for it."""
    return x.is_cuda and _HAS_TRITON and (torch.compiler.is_compiling() or detect_fake_mode() is None)


class _MaskedSum(torch.autograd.Function):
    """x * mask, added to residual where there is one; one pass forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.x_dtype = x.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        if residual is None:
            return x * mask.to(x.dtype)
        return torch.addcmul(residual.float(), x.float(), mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (mask,) = ctx.saved_tensors
        grad_residual = None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype)
        return (grad * mask).to(ctx.x_dtype), None, grad_residual


class HashedDropout(nn.Module):
    """Dropout at one place of the model.

    Args:
        prob: Probability of dropping a channel, rounded to a multiple of 2**-15; the scale of what is kept is exact for
            the rounded one.
        site: Name of the position within a layer, or within the model.
    """

    def __init__(self, prob: float, site: str) -> None:
        super().__init__()
        self.prob = prob
        self.site = site
        self.threshold = round(prob * _RESOLUTION)
        self.site_key = key("dropout site", _NO_LAYER, site)

    def forward(self, x: Tensor, dropout_keys: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """Drops channels and adds the residual.

        Args:
            x: (tokens, channels), or (sequences, channels) with keys of that many tokens.
            dropout_keys: (tokens,) int64 from `token_keys`; None switches dropout off.
            residual: Like x, in fp32; added after dropout, in the same pass.

        Returns:
            Like x; fp32 where a residual was added.
        """
        if dropout_keys is None or self.threshold == 0:
            return x if residual is None else residual + x
        if _has_kernel(x):
            from framework.nn.dropout_cuda import FusedDropout

            draw = (self.threshold, _scale(self.threshold), _signed(self.site_key))
            return FusedDropout.apply(x, dropout_keys, residual, *draw)
        return _MaskedSum.apply(x, dropout_mask(dropout_keys, x.shape[1], self.threshold, self.site_key), residual)

    def extra_repr(self) -> str:
        """Shows what the constructor was given."""
        return f"prob={self.prob}, site={self.site!r}"
