"""Heads of pre-training: masked language modelling and next-sentence prediction (NSP)."""

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.families import FAMILIES
from framework.tasks.pooling import Pooler, PredictionTransform, pool_first


class TiedDecoder(nn.Module):
    """Linear layer to all words, whose weight is the word embeddings (Press and Wolf 2017), plus a bias.

    Args:
        weight: (vocab, hidden) parameter of the word embeddings; it is shared, not copied.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (targets, hidden) to logits (targets, vocab)."""
        return nn.functional.linear(x, self.weight, self.bias)


class MaskedLanguageModelHead(PredictionTransform):
    """Transform and decoder (`BertLMPredictionHead` in transformers).

    Args:
        config: Encoder configuration.
        decoder: Decoder tied to the word embeddings.
    """

    def __init__(self, config: EncoderConfig, decoder: TiedDecoder) -> None:
        super().__init__(config, config.table_size)
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        """Maps (targets, hidden) to logits (targets, vocab)."""
        return self.decoder(super().forward(x))


class LinearLanguageModelHead(nn.Module):
    """Decoder with a weight of its own and without a transform (`EuroBertForMaskedLM` in transformers).

    Args:
        config: Encoder configuration.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        has_bias = config.bias or FAMILIES[config.family].decoder_has_bias
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, has_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (targets, hidden) to logits (targets, vocab)."""
        return self.decoder(x)


class PretrainingHead(nn.Module):
    """Heads of masked language modelling and, given a pooler and a classifier, next-sentence prediction (NSP).

    Args:
        mlm: Head that scores words.
        pooler: Projection of the first token for NSP; None without NSP.
        nsp: Classifier from hidden to 2 scores; None without NSP.
    """

    def __init__(
        self,
        mlm: MaskedLanguageModelHead | LinearLanguageModelHead,
        pooler: Pooler | None = None,
        nsp: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.mlm = mlm
        self.pooler = pooler
        self.nsp = nsp

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores the targets only.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch; `targets["mlm_positions"]` (targets,) int64 are the indices of the tokens to predict.
            dropout_keys: Unused, because these heads have no dropout.

        Returns:
            `mlm` logits (targets, vocab) and, with NSP, `nsp` logits (sequences, 2): column 0 "follows", 1 "random".
        """
        # index_select, because the backward pass of plain indexing sorts the positions.
        outputs = {"mlm": self.mlm(hidden_states.index_select(0, batch.targets["mlm_positions"]))}
        if self.pooler is not None and self.nsp is not None:
            outputs["nsp"] = self.nsp(self.pooler(pool_first(hidden_states, batch)))
        return outputs


def build_pretraining_head(encoder: TransformerEncoder, config: EncoderConfig, nsp: bool) -> PretrainingHead:
    """Builds the head in the form of the encoder's family.

    Args:
        encoder: Encoder whose word embeddings the decoder shares.
        config: Encoder configuration.
        nsp: True adds the head of next-sentence prediction.
    """
    mlm: MaskedLanguageModelHead | LinearLanguageModelHead
    if FAMILIES[config.family].ties_decoder:
        words = encoder.get_parameter("embeddings.word_embeddings.weight")
        mlm = MaskedLanguageModelHead(config, TiedDecoder(words))
    else:
        mlm = LinearLanguageModelHead(config)
    if not nsp:
        return PretrainingHead(mlm)
    return PretrainingHead(mlm, Pooler(config), nn.Linear(config.hidden_size, 2))
