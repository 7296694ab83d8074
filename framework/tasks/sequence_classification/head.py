"""Head of sequence classification: pooled hidden states to one score for each label."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from framework.batch import PackedBatch
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.nn.dropout import HashedDropout
from framework.tasks.pooling import POOLINGS, Pooler, Pooling, PredictionTransform, family_transform

PROJECTIONS = ("family", "none")


class Classifier(nn.Linear):
    """A linear map whose inputs follow the precision, and whose sums stay fp32.

    Rounded to bf16, a score of 4 would be known to 1/32, which is too coarse for a number that is itself the answer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (sequences, hidden) to (sequences, scores); fp32 under autocast."""
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            x, weight, bias = (tensor.to(dtype).float() for tensor in (x, self.weight, self.bias))
            return linear(x, weight, bias)


class SequenceClassificationHead(nn.Module):
    """Pooling, the family's projection, dropout, classifier.

    At most one of `pooler` and `transform` is given; they are two names because published weights of the two do not fit
    each other. Without either the head is linear in the pooled hidden state: over a frozen encoder that is a logistic
    or a linear regression.

    Args:
        pooling: A function of `framework.tasks.pooling`.
        dropout: Before the classifier.
        classifier: Hidden to labels.
        pooler: The projection of BERT and RoBERTa.
        transform: The projection of ModernBERT.
    """

    def __init__(
        self,
        pooling: Pooling,
        dropout: HashedDropout,
        classifier: nn.Linear,
        pooler: Pooler | None = None,
        transform: PredictionTransform | None = None,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.pooler = pooler
        self.transform = transform
        self.dropout = dropout
        self.classifier = classifier

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores each sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Gives the offsets of the sequences.
            dropout_keys: (tokens,) int64; the key of a sequence is that of its first token. None switches dropout off.

        Returns:
            `logits` (sequences, labels).
        """
        x = self.pooling(hidden_states, batch)
        if self.pooler is not None:
            x = self.pooler(x)
        if self.transform is not None:
            x = self.transform(x)
        sequence_keys = None if dropout_keys is None else dropout_keys[batch.cu_seqlens[:-1]]
        return {"logits": self.classifier(self.dropout(x, sequence_keys))}


def build_sequence_classification_head(
    config: EncoderConfig,
    num_labels: int,
    pooling: str = "cls",
    classifier_dropout: float = 0.1,
    projection: Literal["family", "none"] = "family",
) -> SequenceClassificationHead:
    """Builds the head.

    Args:
        config: Of the encoder.
        num_labels: Scores to give.
        pooling: "cls" (first token) or "mean" (all tokens).
        classifier_dropout: Probability of dropping a channel before the classifier.
        projection: "family" puts before the classifier what the encoder's family has there, "none" nothing.

    Raises:
        ConfigError: The pooling or the projection is not known.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"pooling={pooling!r} is not known; choose one of {', '.join(POOLINGS)}.")
    if projection not in PROJECTIONS:
        raise ConfigError(f"projection={projection!r} is not known; choose one of {', '.join(PROJECTIONS)}.")
    pooler, transform = None, None
    if projection == "family":
        transform = family_transform(config)
        pooler = Pooler(config.hidden_size) if transform is None else None
    return SequenceClassificationHead(
        pooling=POOLINGS[pooling],
        dropout=HashedDropout(classifier_dropout, "classifier"),
        classifier=Classifier(config.hidden_size, num_labels),
        pooler=pooler,
        transform=transform,
    )
