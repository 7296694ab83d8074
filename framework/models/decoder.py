"""A Transformer decoder on top of an encoder, with the encoder's widths. Inputs are packed; there is no device code.

It is the decoder of BERT2BERT (Rothe, Narayan, Severyn 2020, arXiv:1907.12461): a post-norm BERT with cross-attention
in each layer, and optionally the encoder's word embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.errors import check_at_least
from framework.models.config import EncoderConfig
from framework.nn.decoder_attention import AttentionCache, CausalSelfAttention, CrossAttention
from framework.nn.decoder_layer import DecoderLayer
from framework.nn.dropout import HashedDropout, layer_keys
from framework.nn.embeddings import TokenEmbeddings
from framework.nn.feed_forward import FeedForward
from framework.nn.norm import LayerNorm, ResidualNorm


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of a decoder beyond those of its encoder.

    Attributes:
        num_layers: Number of decoder layers.
        max_length: Maximum number of tokens of a target with one special token: rows of the position table.
        share_words: True: word embeddings are those of the encoder, else separate.
        tie_output: True: the output layer shares the word embeddings, else it has its own weight.

    Raises:
        ConfigError: A size is below 1.
    """

    num_layers: int = 6
    max_length: int = 128
    share_words: bool = True
    tie_output: bool = True

    def __post_init__(self) -> None:
        for name in ("num_layers", "max_length"):
            check_at_least(f"decoder.{name}", getattr(self, name), 1)


def _build_layer(encoder: EncoderConfig) -> DecoderLayer:
    def norm() -> ResidualNorm:
        return ResidualNorm(encoder.hidden_size, encoder.norm_eps, encoder.norm_bias)

    def dropout(site: str) -> HashedDropout:
        return HashedDropout(encoder.hidden_dropout, site)

    return DecoderLayer(
        attention=CausalSelfAttention(encoder.hidden_size, encoder.num_heads, encoder.bias),
        attention_norm=norm(),
        cross_attention=CrossAttention(encoder.hidden_size, encoder.num_heads, encoder.bias),
        cross_attention_norm=norm(),
        feed_forward=FeedForward(encoder.hidden_size, encoder.intermediate_size, encoder.activation, encoder.bias),
        feed_forward_norm=norm(),
        attention_output_dropout=dropout("attention output"),
        cross_attention_output_dropout=dropout("cross-attention output"),
        feed_forward_output_dropout=dropout("feed-forward output"),
    )


class TransformerDecoder(nn.Module):
    """Embeddings of words, learned positions and one segment, and decoder layers with cross-attention.

    Args:
        config: Decoder configuration.
        encoder: Encoder configuration, for widths, activation, norms and dropout. Its positions and norm placement do
            not apply.
        words: (vocab, hidden) parameter of the encoder's word embeddings, shared if the config says so.
    """

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig, words: nn.Parameter) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(
            vocab_size=words.shape[0],
            hidden_size=encoder.hidden_size,
            num_positions=config.max_length,
            position_offset=0,
            # BERT's segment 0, shared by all tokens. Position embeddings could absorb it, but learn it more slowly: on
            # Multi30k (2 + 2 layers of 128) the loss was 0.1 nats higher after 200 steps without it.
            type_vocab_size=1,
            norm=LayerNorm(encoder.hidden_size, encoder.norm_eps, encoder.norm_bias),
            dropout=HashedDropout(encoder.embedding_dropout, "embeddings"),
        )
        if config.share_words:
            self.embeddings.word_embeddings.weight = words
        self.layers = nn.ModuleList(_build_layer(encoder) for _ in range(config.num_layers))

    def forward(
        self,
        batch: PackedBatch,
        source_states: Tensor,
        sources: PackedBatch,
        dropout_keys: Tensor | None = None,
        caches: Sequence[AttentionCache] | None = None,
    ) -> Tensor:
        """Maps targets to hidden states; each token attends to earlier tokens and to its source.

        Args:
            batch: Batch of targets, one sequence per source. With caches: one token of each hypothesis, and one
                sequence for the hypotheses of each source.
            source_states: (source tokens, hidden) of the encoder.
            sources: Batch that the encoder read.
            dropout_keys: (target tokens,) int64 from `decoder_keys`; None disables dropout.
            caches: One cache per layer from `new_caches`. Each call appends the batch's tokens.

        Returns:
            (target tokens, hidden).
        """
        x = self.embeddings(batch, dropout_keys)
        keys = layer_keys(dropout_keys, len(self.layers))
        for index, layer in enumerate(self.layers):
            cache = None if caches is None else caches[index]
            x = layer(x, batch, source_states, sources, keys[index], cache)
        return x

    def new_caches(self) -> list[AttentionCache]:
        """Returns empty caches for hypotheses without tokens."""
        return [AttentionCache() for _ in self.layers]
