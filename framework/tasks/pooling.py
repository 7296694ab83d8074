"""Pooling of a sequence's hidden states to one vector, and the projections that heads apply before their classifier."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.layout import SHORTEST_PAIR, check_max_length
from framework.errors import check_choice, check_fraction
from framework.models.config import EncoderConfig
from framework.nn.feed_forward import ACTIVATIONS
from framework.nn.norm import LayerNorm
from framework.published.families import FAMILIES

Pooling = Callable[[Tensor, PackedBatch], Tensor]


def pool_first(hidden_states: Tensor, batch: PackedBatch) -> Tensor:
    """Selects the first token of each sequence, which is [CLS] in BERT: (tokens, hidden) to (sequences, hidden)."""
    return hidden_states.index_select(0, batch.cu_seqlens[:-1])


def pool_mean(hidden_states: Tensor, batch: PackedBatch) -> Tensor:
    """Averages all tokens of each sequence, special tokens included: (tokens, hidden) to (sequences, hidden) fp32."""
    # `unsafe` only skips a check of the offsets, which would synchronise with the device.
    return torch.segment_reduce(hidden_states.float(), "mean", offsets=batch.cu_seqlens, axis=0, unsafe=True)


_POOLER_ACTIVATIONS = {**ACTIVATIONS, "tanh": torch.tanh}
POOLINGS: dict[str, Pooling] = {"cls": pool_first, "mean": pool_mean}


class Pooler(nn.Module):
    """activation(dense(x)), the projection of a pooled vector before its classifier (`BertPooler` in transformers).

    The activation belongs to the family: tanh in BERT (Devlin et al. 2019), ReLU in DistilBERT, GELU in ELECTRA.

    Args:
        config: Encoder configuration.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = _POOLER_ACTIVATIONS[FAMILIES[config.family].pooler_activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (sequences, hidden) to (sequences, hidden)."""
        return self.activation(self.dense(x))


class PredictionTransform(nn.Module):
    """norm(activation(dense(x))), applied before BERT's decoder for masked words and before every ModernBERT head.

    The activation is that of the encoder, but always GELU in some families (RoBERTa).

    Args:
        config: Encoder configuration.
        width: Width of the output; None: that of the encoder.
    """

    def __init__(self, config: EncoderConfig, width: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        family = FAMILIES[config.family]
        self.dense = nn.Linear(config.hidden_size, width, bias=config.bias or family.transform_has_bias)
        self.activation = ACTIVATIONS[family.transform_activation or config.activation]
        self.norm = LayerNorm(width, config.norm_eps, config.norm_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., hidden) to (..., width) fp32."""
        return self.norm(self.activation(self.dense(x)))


def family_transform(config: EncoderConfig) -> PredictionTransform | None:
    """Builds the transform that a family (ModernBERT) applies before every classifier; returns None for the others."""
    return PredictionTransform(config) if FAMILIES[config.family].transforms_scores else None


def check_pooled_scores(max_length: int, pooling: str, classifier_dropout: float) -> None:
    """Checks the settings that all tasks with scores of pooled texts or pairs share.

    Raises:
        ConfigError: `max_length` is below 5, the pooling unknown, or the probability not in [0, 1).
    """
    check_max_length("task.max_length", max_length, SHORTEST_PAIR)
    check_choice("task.pooling", pooling, POOLINGS)
    check_fraction("task.classifier_dropout", classifier_dropout)
