"""Token classification head: one score per tag for the hidden state of each token."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.nn.dropout import HashedDropout
from framework.tasks.pooling import PredictionTransform, family_transform


class TokenClassificationHead(nn.Module):
    """Optional projection of the model family, dropout, and classifier.

    Args:
        dropout: Dropout before the classifier.
        classifier: Linear layer from hidden to tags.
        transform: Projection of ModernBERT. None: no projection.
    """

    def __init__(
        self, dropout: HashedDropout, classifier: nn.Linear, transform: PredictionTransform | None = None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.dropout = dropout
        self.classifier = classifier

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores each token.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch.
            dropout_keys: (tokens,) int64. None disables dropout.

        Returns:
            `logits` (tokens, labels).
        """
        x = hidden_states if self.transform is None else self.transform(hidden_states)
        return {"logits": self.classifier(self.dropout(x, dropout_keys))}


def build_token_classification_head(
    config: EncoderConfig, num_tags: int, classifier_dropout: float = 0.1
) -> TokenClassificationHead:
    """Builds the head with the projection of the encoder's model family, if the family has one.

    Args:
        config: Encoder configuration.
        num_tags: Number of tags.
        classifier_dropout: Probability of dropping a channel before the classifier.
    """
    return TokenClassificationHead(
        dropout=HashedDropout(classifier_dropout, "classifier"),
        classifier=nn.Linear(config.hidden_size, num_tags),
        transform=family_transform(config),
    )
