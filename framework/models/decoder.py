"""A transformer decoder on top of an encoder, of the encoder's widths. Packed only; knows nothing of devices or ranks.

It is the decoder of BERT2BERT (Rothe, Narayan, Severyn 2020, arXiv:1907.12461): a post-norm BERT with attention to the
source added to each layer, and, where words are shared, the encoder's word embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.nn.decoder_attention import AttentionCache, CausalSelfAttention, CrossAttention
from framework.nn.decoder_layer import DecoderLayer
from framework.nn.dropout import HashedDropout, layer_keys
from framework.nn.embeddings import TokenEmbeddings
from framework.nn.feed_forward import FeedForward
from framework.nn.norm import LayerNorm


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder does not take from its encoder.

    Attributes:
        num_layers: Decoder layers.
        max_length: Most tokens of a target, one special token included: rows of its table of positions.
        share_words: Its word embeddings are the encoder's; else it has its own.
        tie_output: The map to words is its word embeddings; else it has its own.

    Raises:
        ConfigError: A size is below 1.
    """

    num_layers: int = 6
    max_length: int = 128
    share_words: bool = True
    tie_output: bool = True

    def __post_init__(self) -> None:
        for name in ("num_layers", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"decoder.{name} is {getattr(self, name)}, it must be at least 1; raise it.")


def _build_layer(encoder: EncoderConfig) -> DecoderLayer:
    def norm() -> LayerNorm:
        return LayerNorm(encoder.hidden_size, encoder.norm_eps, encoder.norm_bias)

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
    """Embeddings of words, learned positions and one segment, and layers that look at a source.

    Args:
        config: What is its own.
        encoder: Gives widths, activation, norms and dropout; its kind of positions and its place of norms are not
            taken over.
        words: (vocab, hidden), the very parameter of the encoder's word embeddings, which is shared where the config
            says so.
    """

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig, words: nn.Parameter) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(
            vocab_size=words.shape[0],
            hidden_size=encoder.hidden_size,
            num_positions=config.max_length,
            position_offset=0,
            # BERT's segment 0, which all tokens share. Positions could take it up, but they learn it more slowly: on
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
        """Maps targets, of which each token sees those before it, to hidden states.

        Args:
            batch: The targets, as many sequences as sources. With caches: one token of each hypothesis, and one
                sequence for the hypotheses of each source.
            source_states: (source tokens, hidden) of the encoder.
            sources: What the encoder read.
            dropout_keys: (target tokens,) int64 of `decoder_keys`; None switches dropout off.
            caches: One for each layer, from `new_caches`; each call adds the batch's tokens to them.

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
        """Empty caches for hypotheses without a token."""
        return [AttentionCache() for _ in self.layers]
