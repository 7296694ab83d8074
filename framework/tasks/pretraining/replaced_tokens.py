"""Replaced-token detection (Clark et al. 2020, "ELECTRA", arXiv:2003.10555).

A small generator predicts masked words. Words drawn from its predictions replace them, and the encoder that is kept,
the discriminator, learns which tokens of a text are not the original ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.masking import Masking, Replacements
from framework.data.planning.plan import SequenceSource
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_at_least, check_choice
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import cross_entropy_sum
from framework.tasks.pretraining.generator import SHARINGS, GeneratorSize, Sharing
from framework.tasks.pretraining.replaced_tokens_head import LABELS, build_replaced_tokens_head
from framework.tasks.pretraining.replacements import DISCRIMINATOR, GENERATOR, ReplacementSource
from framework.tasks.pretraining.store_sequences import StoreSequences, mask_rates
from framework.tasks.task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric


class ReplacedTokensTask(Task):
    """Replaced-token detection over a token store, with generator and discriminator in one model.

    The loss is that of the generator, the mean over masked words, plus `discriminator_weight` times that of the
    discriminator, the mean over all tokens, special tokens included. As in the authors' code, all masked words are
    replaced, and one that the generator draws right counts as original.

    Args:
        generator: Size of the generator.
        sequence_length: Most tokens of a sequence, special tokens included.
        mask_rate: Fraction of the maskable tokens that is replaced in training, as an exact count in each sequence.
        eval_mask_rate: Fraction of the maskable tokens that is replaced in evaluation.
        masking: Unit of masking: tokens, whole words, or spans of words (`framework.data.masking`).
        masked_share: Share of the chosen tokens that the generator sees as the mask token; it sees the others as they
            are. 0.85 is the value of the authors' code.
        discriminator_weight: Weight of the discriminator's loss.
        temperature: Temperature of the softmax from which replacements are drawn.
        sharing: Weights that generator and discriminator share. "embeddings": the tables of words, positions and
            segments and their norm, as in ELECTRA. "gradient_disentangled": the discriminator's tables of words and
            positions follow those of the generator, which get no gradient from the discriminator (He et al. 2021,
            DeBERTaV3, arXiv:2111.09543, section 3.2). "none": nothing.

    Raises:
        ConfigError: A rate, share, weight or the temperature is out of range, or `sharing` is unknown.
    """

    best_metric = "loss"
    best_mode = "min"
    wraps_epochs = True
    head_kind = "replaced_tokens"
    vocabulary_term = GENERATOR
    allows_tensor_parallel = False
    class_scores: Mapping[str, str] = {}

    def __init__(
        self,
        generator: GeneratorSize,
        sequence_length: int = 128,
        mask_rate: float = 0.15,
        eval_mask_rate: float = 0.15,
        masking: Masking = "token",
        masked_share: float = 0.85,
        discriminator_weight: float = 50.0,
        temperature: float = 1.0,
        sharing: Sharing = "embeddings",
    ) -> None:
        check_at_least("task.discriminator_weight", discriminator_weight, 0)
        if not temperature > 0:
            raise ConfigError(
                f"task.temperature is {temperature}. It must be above 0. Use 1.0 to draw from the predictions of the "
                "generator as they are."
            )
        check_choice("task.sharing", sharing, SHARINGS)
        rates = mask_rates(mask_rate, eval_mask_rate, None, None)
        replacements = Replacements(masked_share, 0.0)
        self.generator = generator
        self.sequences = StoreSequences(sequence_length, False, *rates, masking, replacements)
        self.temperature = temperature
        self.sharing: Sharing = sharing
        self.loss_weights = {GENERATOR: 1.0, DISCRIMINATOR: discriminator_weight}

    def build_sources(self, data: StoreData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Opens the store and returns `train` and, if documents are held out, `validation`.

        Raises:
            DataError: The store is missing or was built with another tokenizer, or a split has too few documents.
        """
        return self.sequences.build(data, tokenizer, seed, ReplacementSource)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the generator and the scores of the discriminator.

        Raises:
            ConfigError: Sequences are longer than the encoder's positions.
        """
        self.sequences.check_positions(config)
        return build_replaced_tokens_head(encoder, config, self.generator, self.temperature, self.sharing)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns sums of the cross-entropy over masked words (`generator`) and over tokens (`discriminator`)."""
        labels = outputs[LABELS]
        losses = nn.functional.binary_cross_entropy_with_logits(
            outputs["discriminator"].float(), labels.clamp(min=0).float(), reduction="none"
        )
        return {
            GENERATOR: cross_entropy_sum(outputs["generator"], batch.targets["mlm_labels"]),
            DISCRIMINATOR: torch.where(labels != IGNORE_INDEX, losses, 0.0).sum(),
        }

    def build_metrics(self) -> dict[str, Metric]:
        """Builds the accuracies of both parts, and precision, recall and share of replaced tokens."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.classification import Accuracy
        from framework.metrics.count_ratio import CountRatio

        names = ("discriminator_accuracy", "replaced_precision", "replaced_recall", "replaced_share")
        return {"generator_accuracy": Accuracy(), **{name: CountRatio() for name in names}}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        labels = outputs[LABELS]
        is_token, is_replaced = labels != IGNORE_INDEX, labels == 1
        is_flagged = (outputs["discriminator"] > 0) & is_token
        metrics["generator_accuracy"].update(outputs["generator"], batch.targets["mlm_labels"])
        metrics["discriminator_accuracy"].update((is_flagged == is_replaced) & is_token, is_token)
        metrics["replaced_precision"].update(is_flagged & is_replaced, is_flagged)
        metrics["replaced_recall"].update(is_flagged & is_replaced, is_replaced)
        metrics["replaced_share"].update(is_replaced, is_token)

    def to_record(self) -> dict[str, Any]:
        """Returns the sequence length."""
        return {"sequence_length": self.sequences.length}
