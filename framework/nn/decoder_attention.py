"""Attention of a decoder: causal self-attention of the target, and cross-attention to the source.

For searches, both also work token by token with a cache of keys and values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from framework.batch import PackedBatch
from framework.nn.attention_backend import cross_attention, self_attention


@dataclass(slots=True)
class AttentionCache:
    """Keys and values of one decoder layer for hypotheses of equal length that grow token by token.

    Attributes:
        keys: (hypotheses, positions, heads, head_dim) of self-attention; None before the first token.
        values: Like keys.
        source_keys: (source tokens, heads, head_dim) of cross-attention; None before the first token.
        source_values: Like source_keys.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    source_keys: Tensor | None = None
    source_values: Tensor | None = None

    def select(self, parents: Tensor) -> None:
        """Selects the hypotheses with the indices `parents` (hypotheses,) int64, in that order; repeats are allowed."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, parents), self.values.index_select(0, parents)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends one token to each hypothesis, (hypotheses, heads, head_dim) each, and returns all keys and values."""
        keys, values = keys[:, None], values[:, None]
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), dim=1), torch.cat((self.values, values), dim=1)
        self.keys, self.values = keys, values
        return keys, values


class CausalSelfAttention(nn.Module):
    """Causal self-attention: a token attends to itself and earlier tokens. Parameters are those of `SelfAttention`.

    Args:
        hidden_size: Width of the input and output.
        num_heads: Number of heads, a divisor of hidden_size.
        bias: Adds biases to both projections.
    """

    def __init__(self, hidden_size: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, cache: AttentionCache | None = None) -> Tensor:
        """Attends within each sequence, or to the cached tokens of each hypothesis.

        Args:
            hidden_states: (tokens, hidden); with a cache, one token of each hypothesis.
            batch: Batch with the offsets of the sequences; not used with a cache.
            cache: Cache of the earlier tokens, to which these are appended.

        Returns:
            (tokens, hidden).
        """
        qkv = self.qkv(hidden_states).unflatten(-1, (-1, 3, self.head_dim))
        if cache is None:
            mixed = self_attention(qkv, None, batch.cu_seqlens, batch.lengths, batch.max_seqlen, causal=True)
        else:
            keys, values = cache.append(qkv[:, :, 1], qkv[:, :, 2])
            # All hypotheses have the same length, so this rectangle has no padding.
            query = qkv[:, :, :1].contiguous()
            mixed = functional.scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))[
                :, :, 0
            ]
        return self.output(mixed.flatten(1))


class CrossAttention(nn.Module):
    """Cross-attention of the tokens of a target to all tokens of its source (Vaswani et al. 2017, section 3.2.3).

    Args:
        hidden_size: Width of source and target.
        num_heads: Number of heads, a divisor of hidden_size.
        bias: Adds biases to all projections.
    """

    def __init__(self, hidden_size: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.key = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.value = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        source_states: Tensor,
        sources: PackedBatch,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """Attends from each target sequence to its source.

        Args:
            hidden_states: (target tokens, hidden).
            batch: Batch with the offsets of the targets. With a cache, a sequence holds one token of each hypothesis of
                a source.
            source_states: (source tokens, hidden); not used if the cache holds their keys and values.
            sources: Batch with the offsets of the sources.
            cache: Cache that keeps keys and values of the sources from the first call.

        Returns:
            (target tokens, hidden).
        """
        query = self._by_head(self.query(hidden_states))
        if cache is None:
            keys, values = self._by_head(self.key(source_states)), self._by_head(self.value(source_states))
        else:
            if cache.source_keys is None or cache.source_values is None:
                cache.source_keys = self._by_head(self.key(source_states))
                cache.source_values = self._by_head(self.value(source_states))
            keys, values = cache.source_keys, cache.source_values
        return self.output(cross_attention(query, keys, values, batch, sources).flatten(1))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))
