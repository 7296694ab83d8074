"""The generator of replaced-token detection: a small encoder that predicts masked words (Clark et al. 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.errors import ConfigError, check_choice
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.dropout import stack_keys
from framework.tasks.pretraining.head import MaskedLanguageModelHead, TiedDecoder

Sharing = Literal["embeddings", "gradient_disentangled", "none"]
SHARINGS = ("embeddings", "gradient_disentangled", "none")
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"


@dataclass(frozen=True)
class GeneratorSize:
    """Size of the generator relative to the discriminator.

    Attributes:
        width: Share of the attention heads, whose size is that of the discriminator, and of the width of the
            feed-forward blocks; rounded to whole heads, at least one.
        layers: Share of the layers, rounded, at least one.

    Raises:
        ConfigError: A share is not in (0, 1].
    """

    width: float = 0.25
    layers: float = 1.0

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"task.generator.{name} is {getattr(self, name)}. It must be a share above 0 and at most 1. "
                    "Choose, for example, 0.25."
                )

    def config(self, discriminator: EncoderConfig) -> EncoderConfig:
        """Returns the configuration of the generator, whose embedding tables are as wide as the discriminator's."""
        num_heads = max(1, round(self.width * discriminator.num_heads))
        hidden_size = num_heads * discriminator.head_dim
        table_size = discriminator.table_size
        return replace(
            discriminator,
            num_heads=num_heads,
            hidden_size=hidden_size,
            intermediate_size=max(1, round(discriminator.intermediate_size * num_heads / discriminator.num_heads)),
            num_layers=max(1, round(self.layers * discriminator.num_layers)),
            embedding_size=None if table_size == hidden_size else table_size,
        )


class _SharedEmbeddings(nn.Module):
    """The part of the generator's embeddings that is its own if it shares the tables of the discriminator."""

    def __init__(self, projection: nn.Module | None) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps (tokens, width of the tables) to (tokens, hidden of the generator) fp32."""
        return embeddings if self.projection is None else self.projection(embeddings).float()


class Generator(nn.Module):
    """Encoder and head that score the words at masked positions.

    Args:
        config: Configuration of the generator, from `GeneratorSize.config`.
        encoder: Discriminator.
        sharing: "embeddings": tables of words, positions and segments, their norm, and the decoder's weight are the
            discriminator's (ELECTRA); else the generator has its own.
    """

    def __init__(self, config: EncoderConfig, encoder: TransformerEncoder, sharing: Sharing) -> None:
        super().__init__()
        check_choice("task.sharing", sharing, SHARINGS)
        own = TransformerEncoder(config)
        self.shares_tables = sharing == "embeddings"
        if self.shares_tables:
            own.add_module("embeddings", _SharedEmbeddings(own.embeddings.projection))
        self.encoder = own
        words = (encoder if self.shares_tables else own).get_parameter(_WORDS)
        self.mlm = MaskedLanguageModelHead(config, TiedDecoder(words))

    def forward(self, encoder: TransformerEncoder, batch: PackedBatch, dropout_keys: Tensor | None) -> Tensor:
        """Scores the words at the positions `targets["mlm_positions"]`.

        Args:
            encoder: Discriminator.
            batch: Micro-batch with masked words.
            dropout_keys: (tokens,) int64 of the discriminator, from which those of the generator are derived; None
                disables dropout.

        Returns:
            Logits (targets, vocab).
        """
        keys = stack_keys(dropout_keys, "generator")
        if self.shares_tables:
            embeddings = self.encoder.embeddings(encoder.embeddings.look_up(batch, keys))
        else:
            embeddings = self.encoder.embed(batch, keys)
        hidden_states = self.encoder.encode(embeddings, batch, keys)
        return self.mlm(hidden_states.index_select(0, batch.targets["mlm_positions"]))


def followed_tables(config: EncoderConfig, sharing: Sharing) -> Mapping[str, str]:
    """Returns `RewritingHead.followed`: with gradient-disentangled sharing the tables of words and positions."""
    if sharing != "gradient_disentangled":
        return {}
    tables = [_WORDS, *([_POSITIONS] if config.position_encoding == "learned" else [])]
    return {table: f"generator.encoder.{table}" for table in tables}
