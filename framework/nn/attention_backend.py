"""Attention over packed sequences: one function for every device, and a slow reference that returns probabilities.

Half precision on CUDA uses `torch.nn.attention.varlen.varlen_attn`. Short sequences on the CPU use batched matrix
products (`attention_cpu`). Everything else uses `scaled_dot_product_attention` in a loop over sequences. None of them
supports dropout.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import PackedBatch
from framework.nn.attention_cpu import MAX_LENGTH, CpuPackedAttention, score_bias
from framework.nn.rotary import apply_rotary


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    max_seqlen: int,
    *,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention within each sequence (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (tokens, heads, head_dim).
        key: (tokens, heads, head_dim).
        value: (tokens, heads, head_dim).
        cu_seqlens: (sequences + 1,) int32 offsets of the sequences.
        lengths: Lengths of the sequences, on the host. `varlen_attn` does not read them, so compiled code does not
            depend on them.
        max_seqlen: Upper bound of the lengths.
        window: Size of the attention window in tokens, half on each side; None: the whole sequence.
        causal: Restricts each token to itself and earlier tokens.

    Returns:
        (tokens, heads, head_dim).
    """
    if _has_varlen_kernel(query):
        half = -1 if window is None else window // 2
        window_size = (half, 0 if causal else half)
        return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window_size)
    if _is_short(query, lengths):
        return CpuPackedAttention.apply(torch.stack((query, key, value), dim=2), None, lengths, window, causal)
    return _loop_over_sequences(query, key, value, lengths, window, causal)


def self_attention(
    qkv: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    max_seqlen: int,
    *,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Applies `attention` to a joint projection, which saves several copies on the CPU.

    Args:
        qkv: (tokens, heads, 3, head_dim): queries, keys and values.
        rotary: Cosines and sines, each (tokens, head_dim / 2), that rotate queries and keys; None: no rotation.
        cu_seqlens: As in `attention`.
        lengths: As in `attention`.
        max_seqlen: As in `attention`.
        window: As in `attention`.
        causal: As in `attention`.

    Returns:
        (tokens, heads, head_dim).
    """
    if not _has_varlen_kernel(qkv) and _is_short(qkv, lengths):
        return CpuPackedAttention.apply(qkv, rotary, lengths, window, causal)
    query, key, value = qkv.unbind(dim=2)
    if rotary is not None:
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
    return attention(query, key, value, cu_seqlens, lengths, max_seqlen, window=window, causal=causal)


def cross_attention(query: Tensor, key: Tensor, value: Tensor, queries: PackedBatch, keys: PackedBatch) -> Tensor:
    """Applies `attention` between two batches: queries of sequence i attend to all keys of sequence i.

    Args:
        query: (tokens of `queries`, heads, head_dim).
        key: (tokens of `keys`, heads, head_dim).
        value: Like key.
        queries: Batch with the lengths of the queries. Without gradients a length may be 0.
        keys: Batch with the lengths of the keys: the same number of sequences, none of them empty.

    Returns:
        Like query.
    """
    if _has_varlen_kernel(query):
        return varlen_attn(query, key, value, queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen)
    return _loop_over_sequences(query, key, value, queries.lengths, None, False, keys.lengths)


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    window: int | None = None,
    causal: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Computes `attention` by its formula, in fp32, sequence by sequence: slow, but with probabilities.

    Returns:
        Outputs (tokens, heads, head_dim) fp32, and for each sequence the probabilities (heads, length, length) with
        queries as rows.
    """
    outputs, probabilities = [], []
    for q, k, v in _sequences(query.float(), key.float(), value.float(), lengths):
        positions = torch.arange(len(q), device=q.device)
        distance = positions[:, None] - positions[None, :]
        allowed = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            allowed = allowed & (distance.abs() <= window // 2)
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        probabilities.append(weights)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, v))
    return torch.cat(outputs), probabilities


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_queries: int,
    max_keys: int,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Calls torch's kernel of the same name, whose module imports torch's compiler: more than a second on every start.

    Args:
        query: As in `attention`.
        key: As in `attention`.
        value: As in `attention`.
        query_offsets: `cu_seqlens` of the queries.
        key_offsets: `cu_seqlens` of the keys.
        max_queries: Upper bound of the lengths of the queries.
        max_keys: Upper bound of the lengths of the keys.
        window_size: Tokens to the left and to the right that a token attends to; -1: all.
    """
    from torch.nn.attention import varlen

    offsets = (query_offsets, key_offsets, max_queries, max_keys)
    return cast(Tensor, varlen.varlen_attn(query, key, value, *offsets, window_size=window_size))


def _has_varlen_kernel(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def _is_short(x: Tensor, lengths: Sequence[int]) -> bool:
    return x.device.type == "cpu" and max(lengths) <= MAX_LENGTH


def _sequences(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], key_lengths: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, ...]]:
    sizes, key_sizes = list(lengths), list(lengths if key_lengths is None else key_lengths)
    return zip(query.split(sizes), key.split(key_sizes), value.split(key_sizes), strict=True)


def _loop_over_sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    window: int | None,
    causal: bool,
    key_lengths: Sequence[int] | None = None,
) -> Tensor:
    outputs = []
    for sequence in _sequences(query, key, value, lengths, key_lengths):
        q, k, v = (part.transpose(0, 1)[None] for part in sequence)
        bias = score_bias(q.shape[2], window, causal, q.dtype, q.device)
        outputs.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)[0].transpose(0, 1))
    return torch.cat(outputs)
