"""Heads that change the batch before the encoder reads it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder


class RewritingHead(nn.Module, ABC):
    """Head with an encoder of its own, the generator, that runs before the encoder of the model and writes its input.

    All transformer layers of the head belong to the generator.

    Attributes:
        generator_config: Configuration of the generator.
        followed: Name of a weight of the head, by the name of the weight of the encoder that follows it
            (`CombinedOptimizer.follow`), both without the prefixes "head." and "encoder.". Without a starting value of
            its own, the followed weight starts as its follower.
    """

    generator_config: EncoderConfig
    followed: Mapping[str, str]

    @abstractmethod
    def rewrite(
        self, encoder: TransformerEncoder, batch: PackedBatch, dropout_keys: Tensor | None
    ) -> tuple[PackedBatch, dict[str, Tensor]]:
        """Runs the generator.

        Args:
            encoder: Encoder of the model, whose embeddings the generator may share.
            batch: Micro-batch of the data source.
            dropout_keys: (tokens,) int64 from `framework.nn.dropout.token_keys`; None disables dropout.

        Returns:
            The batch that the encoder and the head read, and outputs of the model by name.
        """
