"""Head of replaced-token detection: a generator that replaces masked words, and scores of each token."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.feed_forward import ACTIVATIONS
from framework.nn.sampling import draw_classes
from framework.tasks.pretraining.generator import Generator, GeneratorSize, Sharing, followed_tables
from framework.tasks.rewriting import RewritingHead

LABELS, KEYS = "replaced_labels", "replacement_keys"
"""Targets of each token: 0, IGNORE_INDEX for filler; and of each masked word: the key of its draw."""


class ReplacementScores(nn.Module):
    """One score for each token (`ElectraDiscriminatorPredictions` in transformers).

    Args:
        config: Encoder configuration.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.activation]
        self.scores = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps (tokens, hidden) to logits (tokens,) of being replaced."""
        return self.scores(self.activation(self.dense(hidden_states))).squeeze(-1)


class ReplacedTokensHead(RewritingHead):
    """Generator and scores of the discriminator.

    Args:
        generator: Generator.
        discriminator: Scores.
        config: Encoder configuration of the discriminator.
        generator_config: Encoder configuration of the generator.
        temperature: Temperature of the generator's distribution.
        sharing: Weights that the two share.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: ReplacementScores,
        config: EncoderConfig,
        generator_config: EncoderConfig,
        temperature: float,
        sharing: Sharing,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.generator_config = generator_config
        self.temperature = temperature
        self.followed = followed_tables(config, sharing)

    def rewrite(
        self, encoder: TransformerEncoder, batch: PackedBatch, dropout_keys: Tensor | None
    ) -> tuple[PackedBatch, dict[str, Tensor]]:
        """Replaces the masked words by draws from the generator, through which no gradient flows.

        A batch without keys of draws is text to be scored and stays as it is.

        Returns:
            The batch with replaced words, and the outputs `generator` (targets, vocab), logits of the generator, and
            `replaced_labels` (tokens,) int64: 1 where the word differs from that of the text, IGNORE_INDEX for filler.
        """
        if KEYS not in batch.targets:
            return batch, {}
        logits = self.generator(encoder, batch, dropout_keys)
        positions, words = batch.targets["mlm_positions"], batch.targets["mlm_labels"]
        is_target = words != IGNORE_INDEX
        drawn = draw_classes(logits.detach(), batch.targets[KEYS], self.temperature)
        labels = batch.targets[LABELS]
        # Filler targets write what their position holds: all to the first token, which is never masked.
        drawn = torch.where(is_target, drawn, batch.input_ids.index_select(0, positions))
        is_replaced = torch.where(is_target, (drawn != words).long(), labels.index_select(0, positions))
        outputs = {"generator": logits, LABELS: labels.index_copy(0, positions, is_replaced)}
        return replace(batch, input_ids=batch.input_ids.index_copy(0, positions, drawn)), outputs

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,  # noqa: ARG002
        dropout_keys: Tensor | None = None,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Returns `discriminator` (tokens,), the logits of being replaced."""
        return {"discriminator": self.discriminator(hidden_states)}


def build_replaced_tokens_head(
    encoder: TransformerEncoder, config: EncoderConfig, size: GeneratorSize, temperature: float, sharing: Sharing
) -> ReplacedTokensHead:
    """Builds generator and scores.

    Args:
        encoder: Discriminator.
        config: Its configuration.
        size: Size of the generator.
        temperature: Temperature of the generator's distribution.
        sharing: Weights that the two share.
    """
    generator_config = size.config(config)
    generator = Generator(generator_config, encoder, sharing)
    return ReplacedTokensHead(generator, ReplacementScores(config), config, generator_config, temperature, sharing)
