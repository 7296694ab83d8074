"""Head of sequence classification, from pooled hidden states to one score for each label."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from framework.batch import PackedBatch
from framework.errors import check_choice
from framework.models.config import EncoderConfig
from framework.nn.dropout import HashedDropout
from framework.tasks.pooling import POOLINGS, Pooler, Pooling, PredictionTransform, family_transform
from framework.tasks.sequence_classification.windows import WindowPooling, pool_windows

PROJECTIONS = ("family", "none")


class Classifier(nn.Linear):
    """A linear layer that rounds its inputs to the autocast dtype and keeps its sums in fp32.

    In bf16 a score of 4 would have a resolution of 1/32, which is too coarse if the score itself is the prediction.
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
    """Pooling, the family's projection, dropout and classifier.

    At most one of `pooler` and `transform` is given. They have different names because published weights of the two are
    incompatible. Without either the head is linear in the pooled hidden state. On a frozen encoder it is then a
    logistic or linear regression.

    Args:
        pooling: Function from `framework.tasks.pooling`.
        dropout: Dropout before the classifier.
        classifier: Linear layer from hidden to labels.
        pooler: Projection of all other families.
        transform: Projection of ModernBERT.

    Attributes:
        window_pooling: Combination of the scores of a text's windows, "mean" or "max"; None: each sequence is a text.
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
        self.window_pooling: WindowPooling | None = None

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores each sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch with the offsets of the sequences.
            dropout_keys: (tokens,) int64; the key of a sequence is that of its first token. None disables dropout.

        Returns:
            `logits` (sequences, labels). With windows those of a text, in the row of each of its windows.
        """
        x = self.pooling(hidden_states, batch)
        if self.pooler is not None:
            x = self.pooler(x)
        if self.transform is not None:
            x = self.transform(x)
        sequence_keys = None if dropout_keys is None else dropout_keys[batch.cu_seqlens[:-1]]
        logits = self.classifier(self.dropout(x, sequence_keys))
        return {"logits": logits if self.window_pooling is None else pool_windows(logits, batch, self.window_pooling)}


def build_sequence_classification_head(
    config: EncoderConfig,
    num_labels: int,
    pooling: str = "cls",
    classifier_dropout: float = 0.1,
    projection: Literal["family", "none"] = "family",
) -> SequenceClassificationHead:
    """Builds the head.

    Args:
        config: Encoder configuration.
        num_labels: Number of scores.
        pooling: "cls" (first token) or "mean" (all tokens).
        classifier_dropout: Probability of dropping a channel before the classifier.
        projection: "family" applies the projection of the encoder's family before the classifier; "none" omits it.

    Raises:
        ConfigError: The pooling or the projection is unknown.
    """
    check_choice("pooling", pooling, POOLINGS)
    check_choice("projection", projection, PROJECTIONS)
    pooler, transform = None, None
    if projection == "family":
        transform = family_transform(config)
        pooler = Pooler(config) if transform is None else None
    return SequenceClassificationHead(
        pooling=POOLINGS[pooling],
        dropout=HashedDropout(classifier_dropout, "classifier"),
        classifier=Classifier(config.hidden_size, num_labels),
        pooler=pooler,
        transform=transform,
    )
