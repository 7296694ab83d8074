"""Multi-head self-attention over packed sequences; `attention_backend` chooses the kernel."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.nn.attention_backend import reference_attention, self_attention
from framework.nn.attention_bias import AttentionBias, biased_attention, biased_attention_maps
from framework.nn.rotary import apply_rotary


class SelfAttention(nn.Module):
    """Joint projection to queries, keys and values, attention within each sequence, and output projection.

    The rows of `qkv` are ordered (heads, 3, head_dim), so a contiguous shard of rows contains complete heads.

    Args:
        hidden_size: Width of the input and output.
        num_heads: Number of heads, a divisor of hidden_size.
        bias: Adds biases to both projections.
        window: Size of the attention window in tokens, half on each side; None: the whole sequence.
    """

    def __init__(self, hidden_size: int, num_heads: int, bias: bool, window: int | None) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.window = window
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        rotary: tuple[Tensor, Tensor] | None,
        bias: AttentionBias | None = None,
    ) -> Tensor:
        """Attends within each sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Batch with the offsets of the sequences.
            rotary: Cosines and sines, each (tokens, head_dim / 2); None if positions are embedded.
            bias: Terms of the scores by relative position; None: there are none.

        Returns:
            (tokens, hidden).
        """
        qkv = self._project(hidden_states)
        if bias is not None:
            return self.output(biased_attention(qkv, bias, self._positions(bias)).flatten(1))
        mixed = self_attention(qkv, rotary, batch.cu_seqlens, batch.lengths, batch.max_seqlen, window=self.window)
        return self.output(mixed.flatten(1))

    def attention_maps(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        rotary: tuple[Tensor, Tensor] | None,
        bias: AttentionBias | None = None,
    ) -> list[Tensor]:
        """Returns the attention probabilities of each sequence: (heads, length, length) fp32 with queries as rows.

        Args:
            hidden_states: (tokens, hidden), as in `forward`.
            batch: Batch with the lengths of the sequences.
            rotary: As in `forward`.
            bias: As in `forward`.
        """
        qkv = self._project(hidden_states)
        if bias is not None:
            return biased_attention_maps(qkv, bias, self._positions(bias), batch.lengths)
        query, key, value = qkv.unbind(dim=2)
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        return reference_attention(query, key, value, batch.lengths, window=self.window)[1]

    def _project(self, x: Tensor) -> Tensor:
        """Maps (..., hidden) to queries, keys and values (..., heads, 3, head_dim)."""
        return self.qkv(x).unflatten(-1, (-1, 3, self.head_dim))

    def _positions(self, bias: AttentionBias) -> Tensor | None:
        return None if bias.positions is None else self._project(bias.positions).squeeze(0)
