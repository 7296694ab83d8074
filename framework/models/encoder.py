"""The encoder, assembled from `framework.nn` by an EncoderConfig. Inputs are packed; there is no device code."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.nn.attention import SelfAttention
from framework.nn.attention_bias import AlibiBias, AttentionBias, BucketedBias, DisentangledBias
from framework.nn.dropout import HashedDropout, layer_keys
from framework.nn.embeddings import TokenEmbeddings
from framework.nn.feed_forward import FeedForward, GatedFeedForward
from framework.nn.grid_positions import GridPositions
from framework.nn.layer import EncoderLayer
from framework.nn.norm import LayerNorm, ResidualNorm, ResidualRMSNorm, RMSNorm
from framework.nn.patch_embeddings import PatchEmbeddings
from framework.nn.rotary import RotaryTable


def _build_norm(config: EncoderConfig, width: int | None = None) -> LayerNorm:
    width = config.hidden_size if width is None else width
    if config.norm == "rms":
        return RMSNorm(width, config.norm_eps)
    return LayerNorm(width, config.norm_eps, config.norm_bias)


def _build_patch_embeddings(config: EncoderConfig) -> PatchEmbeddings | None:
    if not config.patch_size:
        return None
    sizes = (config.patch_size, config.table_size)
    if config.patch_positions == "grid":
        return PatchEmbeddings(*sizes, grid_size=0, grid_positions=GridPositions(config.patch_grid, config.table_size))
    return PatchEmbeddings(*sizes, config.patch_grid)


def _build_embeddings(config: EncoderConfig) -> TokenEmbeddings:
    width, is_unnormed = config.table_size, config.input_norm == "first_layer"
    return TokenEmbeddings(
        vocab_size=config.vocab_size,
        hidden_size=width,
        num_positions=config.max_position_embeddings if config.position_encoding == "learned" else 0,
        position_offset=config.position_offset,
        type_vocab_size=config.type_vocab_size,
        norm=nn.Identity() if is_unnormed else _build_norm(config, width),
        dropout=HashedDropout(config.embedding_dropout, "embeddings"),
        patch_embeddings=_build_patch_embeddings(config),
        projection=None if width == config.hidden_size else nn.Linear(width, config.hidden_size),
    )


def _build_residual_norm(config: EncoderConfig) -> ResidualNorm:
    if config.norm == "rms":
        return ResidualRMSNorm(config.hidden_size, config.norm_eps)
    return ResidualNorm(config.hidden_size, config.norm_eps, config.norm_bias)


def _build_layer(config: EncoderConfig, index: int) -> EncoderLayer:
    attention_norm: nn.Module = _build_residual_norm(config)
    if config.norm_placement == "pre":
        # The norm of the embeddings may be the only one before the first attention (as in ModernBERT).
        is_normed = index == 0 and config.input_norm == "embeddings"
        attention_norm = nn.Identity() if is_normed else _build_norm(config)
    feed_forward_class = GatedFeedForward if config.gated else FeedForward
    return EncoderLayer(
        attention=SelfAttention(config.hidden_size, config.num_heads, config.bias, config.attention_window(index)),
        attention_norm=attention_norm,
        feed_forward=feed_forward_class(config.hidden_size, config.intermediate_size, config.activation, config.bias),
        feed_forward_norm=_build_residual_norm(config),
        attention_output_dropout=HashedDropout(config.hidden_dropout, "attention output"),
        feed_forward_output_dropout=HashedDropout(
            config.hidden_dropout if config.feed_forward_dropout is None else config.feed_forward_dropout,
            "feed-forward output",
        ),
        norm_placement=config.norm_placement,
    )


def _build_relative_bias(config: EncoderConfig) -> nn.Module | None:
    if config.relative_bias == "bucketed":
        return BucketedBias(config.num_heads, config.relative_buckets, config.relative_distance)
    if config.relative_bias == "alibi":
        return AlibiBias(config.num_heads)
    if config.relative_bias == "disentangled":
        return DisentangledBias(config.relative_buckets, config.relative_distance, _build_norm(config))
    return None


def _layer_kind(config: EncoderConfig, index: int) -> str:
    """Returns the rotary table of a layer: "global" for attention to the whole sequence, "local" for a window."""
    return "global" if config.attention_window(index) is None else "local"


class TransformerEncoder(nn.Module):
    """Embeddings, layers and, with pre-norm, a final norm.

    `embed` and `encode` are separate calls, so embeddings can come from elsewhere or be changed in between.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _build_embeddings(config)
        self.relative_bias = _build_relative_bias(config)
        self.layers = nn.ModuleList(_build_layer(config, index) for index in range(config.num_layers))
        self.final_norm = _build_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.layer_kinds = tuple(_layer_kind(config, index) for index in range(config.num_layers))
        thetas = {"global": config.rope_theta_global, "local": config.rope_theta_local}
        self.rotary_tables = nn.ModuleDict(
            {
                kind: RotaryTable(config.head_dim, config.max_position_embeddings, thetas[kind])
                for kind in sorted(set(self.layer_kinds))
                if config.position_encoding == "rotary"
            }
        )

    def embed(self, batch: PackedBatch, dropout_keys: Tensor | None = None) -> Tensor:
        """Maps a batch to embeddings (tokens, hidden); dropout_keys (tokens,) int64, None disables dropout.

        Patches of pictures get embeddings of their own, which pass through the same norm and dropout.
        """
        return self.embeddings(batch, dropout_keys)

    def encode(self, embeddings: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None) -> Tensor:
        """Maps embeddings (tokens, hidden) to hidden states (tokens, hidden)."""
        hidden_states = embeddings
        rotary, bias = self._rotary(batch), self._bias(batch)
        keys = layer_keys(dropout_keys, len(self.layers))
        for layer, kind, keys_of_layer in zip(self.layers, self.layer_kinds, keys, strict=True):
            hidden_states = layer(hidden_states, batch, rotary.get(kind), keys_of_layer, bias)
        return self.final_norm(hidden_states)

    def forward(self, batch: PackedBatch, dropout_keys: Tensor | None = None) -> Tensor:
        """Maps a batch to hidden states (tokens, hidden)."""
        return self.encode(self.embed(batch, dropout_keys), batch, dropout_keys)

    def hidden_states(self, batch: PackedBatch) -> list[Tensor]:
        """Returns the embeddings and the output of every layer, each (tokens, hidden), without dropout.

        As in transformers' `output_hidden_states`, the last one equals the result of `forward` (after the final norm).
        """
        states = [self.embed(batch)]
        rotary, bias = self._rotary(batch), self._bias(batch)
        for layer, kind in zip(self.layers, self.layer_kinds, strict=True):
            states.append(layer(states[-1], batch, rotary.get(kind), None, bias))
        states[-1] = self.final_norm(states[-1])
        return states

    def attention_maps(self, batch: PackedBatch) -> list[list[Tensor]]:
        """Returns the attention probabilities of every layer, without dropout. Slow: sequence by sequence in fp32.

        Returns:
            For each layer and each sequence, dummies included: (heads, length, length) with queries as rows.
        """
        hidden_states, rotary, bias, maps = self.embed(batch), self._rotary(batch), self._bias(batch), []
        for layer, kind in zip(self.layers, self.layer_kinds, strict=True):
            assert isinstance(layer, EncoderLayer)
            maps.append(layer.attention_maps(hidden_states, batch, rotary.get(kind), bias))
            hidden_states = layer(hidden_states, batch, rotary.get(kind), None, bias)
        return maps

    def _rotary(self, batch: PackedBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns cosines and sines by kind of layer; empty if positions are embedded."""
        return {kind: table(batch.position_ids) for kind, table in self.rotary_tables.items()}

    def _bias(self, batch: PackedBatch) -> AttentionBias | None:
        """Returns the terms of attention scores by relative position; None if there are none."""
        if self.relative_bias is None:
            return None
        return self.relative_bias(batch.lengths, batch.cu_seqlens.device)
