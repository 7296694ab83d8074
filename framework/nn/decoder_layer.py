"""One decoder layer: causal self-attention, attention to the source, feed-forward; each followed by a norm."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.nn.decoder_attention import AttentionCache, CausalSelfAttention, CrossAttention
from framework.nn.dropout import HashedDropout
from framework.nn.norm import ResidualNorm


class DecoderLayer(nn.Module):
    """Three residual branches, norm(x + block(x)) each (Vaswani et al. 2017, section 3.1).

    Args:
        attention: Causal self-attention of the targets.
        attention_norm: Norm after self-attention.
        cross_attention: Attention of the targets to the sources.
        cross_attention_norm: Norm after cross-attention.
        feed_forward: Feed-forward block.
        feed_forward_norm: Norm after the feed-forward block.
        attention_output_dropout: Dropout on the output of self-attention.
        cross_attention_output_dropout: Dropout on the output of cross-attention.
        feed_forward_output_dropout: Dropout on the output of the feed-forward block.
    """

    def __init__(
        self,
        attention: CausalSelfAttention,
        attention_norm: ResidualNorm,
        cross_attention: CrossAttention,
        cross_attention_norm: ResidualNorm,
        feed_forward: nn.Module,
        feed_forward_norm: ResidualNorm,
        attention_output_dropout: HashedDropout,
        cross_attention_output_dropout: HashedDropout,
        feed_forward_output_dropout: HashedDropout,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.cross_attention = cross_attention
        self.cross_attention_norm = cross_attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm
        self.attention_output_dropout = attention_output_dropout
        self.cross_attention_output_dropout = cross_attention_output_dropout
        self.feed_forward_output_dropout = feed_forward_output_dropout

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        source_states: Tensor,
        sources: PackedBatch,
        dropout_keys: Tensor | None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """Maps (target tokens, hidden) to (target tokens, hidden).

        Args:
            hidden_states: (target tokens, hidden).
            batch: Batch with the offsets of the targets (for hypotheses see `CrossAttention.forward`).
            source_states: (source tokens, hidden).
            sources: Batch with the offsets of the sources.
            dropout_keys: (target tokens,) int64 keys of this layer (`layer_keys`); None disables dropout.
            cache: Cache of this layer for hypotheses that grow token by token.
        """
        both = ("normed", "operand")
        attended = self.attention(hidden_states, batch, cache)
        drops = self.attention_output_dropout, dropout_keys
        x, operand = self.attention_norm(attended, hidden_states, *drops, both)
        attended = self.cross_attention(operand, batch, source_states, sources, cache)
        x, operand = self.cross_attention_norm(attended, x, self.cross_attention_output_dropout, dropout_keys, both)
        fed = self.feed_forward(operand)
        return self.feed_forward_norm(fed, x, self.feed_forward_output_dropout, dropout_keys, ("normed",))[0]
