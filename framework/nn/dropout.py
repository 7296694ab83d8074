"""Dropout whose mask is a hash of (seed, step, pass, sequence, position, layer, site, channel).

The mask of a token does not depend on rank, micro-batch or position in the batch, and recomputing a layer gives the
same mask, so no generator state is needed. The hash is SplitMix64 (Steele, Lea, Flood 2014): the key of a token starts
a stream, and each 64-bit output decides four channels with 15 bits each.
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
    """Returns the int64 with the same 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _in_each_lane(value: int) -> int:
    """Returns a word with the value in each of its four 16-bit lanes."""
    return _signed(value * 0x0001000100010001)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts logically (torch shifts int64 arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Computes `framework.random.mix` with base 0 on int64 tensors."""
    x = x + _signed(GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * _signed(MULTIPLIER_2)
    return x ^ _shift_right(x, 31)


def has_dropout(model: nn.Module) -> bool:
    """Returns True if any module of the model drops channels; otherwise no dropout keys are needed."""
    return any(isinstance(module, HashedDropout) and module.threshold for module in model.modules())


def dropout_base(seed: int, step: int, pass_index: int) -> int:
    """Returns the int64 from which the dropout keys of one forward pass are derived.

    Args:
        seed: The run's seed.
        step: Optimizer steps completed before this one.
        pass_index: Index of the forward pass over the same data within the step.
    """
    return _signed(key(seed, "dropout", step, pass_index))


def token_keys(base: int | Tensor, batch: PackedBatch) -> Tensor:
    """Returns the dropout key of each token.

    Args:
        base: Result of `dropout_base`, or an int64 scalar with this value on the batch's device.
        batch: Batch with sequence ids and positions.

    Returns:
        (tokens,) int64, on the batch's device.
    """
    sequence_keys = _mix(batch.sequence_ids ^ base)
    lengths = batch.cu_seqlens.diff()
    num_tokens = batch.position_ids.shape[0]
    return _mix(torch.repeat_interleave(sequence_keys, lengths, output_size=num_tokens) ^ batch.position_ids)


def decoder_keys(dropout_keys: Tensor | None, batch: PackedBatch) -> Tensor | None:
    """Returns the dropout key of each token of the decoder input.

    It is a function of the key of the sequence's first token (`token_keys`) and of the position in the decoder input.

    Args:
        dropout_keys: (tokens,) int64 keys of the batch's own tokens; None disables dropout.
        batch: Batch with `decoder_inputs`.

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


def stack_keys(dropout_keys: Tensor | None, stack: str) -> Tensor | None:
    """Returns the keys of another stack of layers over the same tokens, whose masks differ from those of the encoder.

    Args:
        dropout_keys: (tokens,) int64 from `token_keys`; None disables dropout.
        stack: Name of the stack.
    """
    return None if dropout_keys is None else _mix(dropout_keys ^ _signed(key("stack", stack)))


def _is_little_endian_cpu(x: Tensor) -> bool:
    """Returns True if reading lanes from memory is valid and fastest: eager, little-endian CPU."""
    return x.device.type == "cpu" and sys.byteorder == "little"


def layer_keys(dropout_keys: Tensor | None, num_layers: int) -> Sequence[Tensor | None]:
    """Returns the keys of each layer of a stack, as functions of the token's key and the layer index.

    Layers receive their keys as inputs: with the index inside, torch would compile each layer separately. The keys of
    all layers are computed at once; layer by layer they took a tenth of the kernels of a step.

    Args:
        dropout_keys: (tokens,) int64; None disables dropout.
        num_layers: Number of layers.

    Returns:
        (tokens,) int64 or None for each layer.
    """
    if dropout_keys is None:
        return [None] * num_layers
    layers = [dropout_keys ^ _signed(key("dropout layer", layer)) for layer in range(num_layers)]
    return _mix(torch.stack(layers)).unbind()


def _scale(threshold: int) -> float:
    """Returns the factor of kept channels."""
    return 1.0 / (1.0 - threshold / _RESOLUTION)


def random_words(streams: Tensor, num_words: int) -> Tensor:
    """Returns the first words of SplitMix64 streams, of which all bits but the highest of each word are random.

    All passes but the last work in place. Torch shifts int64 arithmetically, while SplitMix64 shifts logically. This is
    as good a hash except for the highest bit.

    Args:
        streams: (streams,) int64, the start of each stream.
        num_words: Words of each stream.

    Returns:
        (streams, num_words) int64.
    """
    # Word i of a stream is stream + i * golden, here as (stream / golden + i) * golden: inductor takes a number times a
    # range for an index, and generates kernels whose factor does not fit into 32 bits.
    words = (streams * _signed(_GOLDEN_INVERSE)).unsqueeze(1) + torch.arange(1, num_words + 1, device=streams.device)
    words.mul_(_signed(GOLDEN))
    for bits, multiplier in ((30, MULTIPLIER_1), (27, MULTIPLIER_2)):
        words.bitwise_xor_(words >> bits).mul_(_signed(multiplier))
    return words.bitwise_xor_(words >> 31)


def dropout_mask(dropout_keys: Tensor, num_channels: int, threshold: int, site_key: int) -> Tensor:
    """Draws the mask of each token, scaled for kept channels, from words of four channels each (`random_words`).

    No lane uses the highest bit of a word.

    Args:
        dropout_keys: (tokens,) int64.
        num_channels: Channels of a token.
        threshold: A channel is dropped with probability threshold / 2**15.
        site_key: 64-bit key of the layer and the site.

    Returns:
        (tokens, num_channels) fp32: 0 where dropped, else 1 / (1 - threshold / 2**15).
    """
    words = random_words(_mix(dropout_keys ^ _signed(site_key)), -(-num_channels // _LANES))
    # In each 16-bit lane: 15 random bits plus (2**15 - threshold) reach bit 15 exactly where the bits are >= threshold.
    words.bitwise_and_(_in_each_lane(0x7FFF)).add_(_in_each_lane(0x8000 - threshold))
    words.bitwise_right_shift_(15).bitwise_and_(_in_each_lane(1))
    if _is_little_endian_cpu(words):
        keep = words.view(torch.int16)
    else:
        # Shift by numbers: with a tensor of shifts, inductor of torch 2.13 computed wrong masks on the CPU.
        keep = torch.stack([(words >> 16 * lane) & 1 for lane in range(_LANES)], dim=2).flatten(1)
    return keep.narrow(1, 0, num_channels).to(torch.float32).mul_(_scale(threshold))


def has_kernel(x: Tensor) -> bool:
    """Returns True if Triton kernels apply, also within compiled layers. Fake tensors have no memory for them."""
    return x.is_cuda and _HAS_TRITON and (torch.compiler.is_compiling() or detect_fake_mode() is None)


class _MaskedSum(torch.autograd.Function):
    """Computes x * mask, plus the residual if given, in one pass forward and one backward."""

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
    """Dropout at one position of the model.

    Args:
        prob: Probability of dropping a channel, rounded to a multiple of 2**-15. The scale of kept channels is exact
            for the rounded probability.
        site: Name of the position within a layer, or within the model.
    """

    def __init__(self, prob: float, site: str) -> None:
        super().__init__()
        self.prob = prob
        self.site = site
        self.threshold = round(prob * _RESOLUTION)
        self.site_key = key("dropout site", _NO_LAYER, site)

    @property
    def draw(self) -> tuple[int, float, int]:
        """Threshold, factor of kept channels and key of the site, as kernels take them."""
        return self.threshold, _scale(self.threshold), _signed(self.site_key)

    def forward(self, x: Tensor, dropout_keys: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """Drops channels and adds the residual.

        Args:
            x: (tokens, channels), or (sequences, channels) with keys of that many tokens.
            dropout_keys: (tokens,) int64 from `token_keys`; None disables dropout.
            residual: Tensor like x in fp32, added after dropout in the same pass.

        Returns:
            Tensor like x; fp32 if a residual was added.
        """
        if dropout_keys is None or self.threshold == 0:
            return x if residual is None else residual + x
        if has_kernel(x):
            from framework.nn.dropout_cuda import FusedDropout

            return FusedDropout.apply(x, dropout_keys, residual, *self.draw)
        return _MaskedSum.apply(x, dropout_mask(dropout_keys, x.shape[1], self.threshold, self.site_key), residual)

    def extra_repr(self) -> str:
        """Returns the constructor arguments for `repr`."""
        return f"prob={self.prob}, site={self.site!r}"
