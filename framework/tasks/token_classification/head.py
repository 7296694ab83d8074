"""Head of token classification: the hidden state of each token to one score for each tag."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.nn.dropout import HashedDropout
from framework.tasks.pooling import PredictionTransform, family_transform


class TokenClassificationHead(nn.Module):
    """The family's projection where it has one, dropout, classifier.

    Args:
        dropout: Before the classifier.
        classifier: Hidden to tags.
        transform: The projection of ModernBERT.
    """

    def __init__(
        self, dropout: HashedDropout, classifier: nn.Linear, transform: PredictionTransform | None = None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.dropout = dropout
        self.classifier = classifier

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,  # noqa: ARG002  every token is scored, wherever it stands
        dropout_keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scores each token.

        Args:
            hidden_states: (tokens, hidden).
            batch: The micro-batch.
            dropout_keys: (tokens,) int64; None switches dropout off.

        Returns:
            `logits` (tokens, labels).
        """
        x = hidden_states if self.transform is None else self.transform(hidden_states)
        return {"logits": self.classifier(self.dropout(x, dropout_keys))}


def build_token_classification_head(
    config: EncoderConfig, num_tags: int, classifier_dropout: float = 0.1
) -> TokenClassificationHead:
    """Builds the head as the encoder's family has it.

    Args:
        config: Of the encoder.
        num_tags: Scores to give.
        classifier_dropout: Probability of dropping a channel before the classifier.
    """
    return TokenClassificationHead(
        dropout=HashedDropout(classifier_dropout, "classifier"),
        classifier=nn.Linear(config.hidden_size, num_tags),
        transform=family_transform(config),
    )
