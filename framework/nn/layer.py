"""One encoder layer: attention and feed-forward, each in a residual branch with norm and dropout."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.nn.attention import SelfAttention
from framework.nn.attention_bias import AttentionBias
from framework.nn.dropout import HashedDropout
from framework.nn.norm import ResidualNorm


class EncoderLayer(nn.Module):
    """Residual branches around the two blocks.

    Args:
        attention: Self-attention.
        attention_norm: Norm of the attention branch: a `ResidualNorm`, or with pre-norm of its input.
        feed_forward: Feed-forward block.
        feed_forward_norm: Norm of the feed-forward branch.
        attention_output_dropout: Dropout on the output of attention.
        feed_forward_output_dropout: Dropout on the output of feed-forward.
        norm_placement: "post": norm(x + block(x)) (BERT); "pre": x + block(norm(x)) (Xiong et al. 2020).
    """

    def __init__(
        self,
        attention: SelfAttention,
        attention_norm: nn.Module,
        feed_forward: nn.Module,
        feed_forward_norm: ResidualNorm,
        attention_output_dropout: HashedDropout,
        feed_forward_output_dropout: HashedDropout,
        norm_placement: str,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm
        self.attention_output_dropout = attention_output_dropout
        self.feed_forward_output_dropout = feed_forward_output_dropout
        self.norm_placement = norm_placement

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        rotary: tuple[Tensor, Tensor] | None,
        dropout_keys: Tensor | None,
        bias: AttentionBias | None = None,
    ) -> Tensor:
        """Maps (tokens, hidden) to (tokens, hidden), with the dropout keys of this layer (`layer_keys`)."""
        x = hidden_states
        drops = self.attention_output_dropout, dropout_keys
        if self.norm_placement == "pre":
            attended = self.attention(self.attention_norm(x), batch, rotary, bias)
            x, operand = self.feed_forward_norm(attended, x, *drops, ("sum", "operand"))
            return self.feed_forward_output_dropout(self.feed_forward(operand), dropout_keys, residual=x)
        attended = self.attention(x, batch, rotary, bias)
        x, operand = self.attention_norm(attended, x, *drops, ("normed", "operand"))
        fed = self.feed_forward(operand)
        return self.feed_forward_norm(fed, x, self.feed_forward_output_dropout, dropout_keys, ("normed",))[0]

    def attention_maps(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        rotary: tuple[Tensor, Tensor] | None,
        bias: AttentionBias | None = None,
    ) -> list[Tensor]:
        """Returns the attention probabilities of each sequence, see `SelfAttention.attention_maps`."""
        is_pre_norm = self.norm_placement == "pre"
        x = self.attention_norm(hidden_states) if is_pre_norm else hidden_states
        return self.attention.attention_maps(x, batch, rotary, bias)
