"""Multi-head self-attention over packed sequences; the kernel is chosen in `attention_backend`."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.nn.attention_backend import self_attention


class SelfAttention(nn.Module):
    """One projection to queries, keys and values, attention within each sequence, one projection back.

    The rows of `qkv` are ordered (heads, 3, head_dim), so that a contiguous shard of rows holds whole heads.

    Args:
        hidden_size: Width.
        num_heads: Heads; divides hidden_size.
        bias: Both projections have biases.
        window: Tokens that a token sees around itself, half on each side; None for the whole sequence.
    """

    def __init__(self, hidden_size: int, num_heads: int, bias: bool, window: int | None) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.window = window
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attends within each sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Gives the offsets of the sequences.
            rotary: Cosines and sines, each (tokens, head_dim / 2), or None where positions were added to the
                embeddings.

        Returns:
            (tokens, hidden).
        """
        qkv = self.qkv(hidden_states).unflatten(-1, (-1, 3, self.head_dim))
        mixed = self_attention(qkv, rotary, batch.cu_seqlens, batch.lengths, batch.max_seqlen, window=self.window)
        return self.output(mixed.flatten(1))
