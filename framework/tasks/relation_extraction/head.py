"""Head of relation extraction, from the hidden states at the marks before both entities to one score per label."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.nn.dropout import HashedDropout


class RelationHead(nn.Module):
    """Concatenation of both entity starts, dropout, classifier (Baldini Soares et al. 2019, sections 3.2 and 3.3).

    Args:
        dropout: Dropout before the classifier.
        classifier: Linear layer from twice hidden to labels.
    """

    def __init__(self, dropout: HashedDropout, classifier: nn.Linear) -> None:
        super().__init__()
        self.dropout = dropout
        self.classifier = classifier

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores each sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch with the target `entity_starts` (sequences, 2).
            dropout_keys: (tokens,) int64; the key of a sequence is that of its first token. None disables dropout.

        Returns:
            `logits` (sequences, labels).
        """
        starts = batch.targets["entity_starts"].clamp(min=0)  # dummies have none
        x = hidden_states[starts].flatten(start_dim=1)
        sequence_keys = None if dropout_keys is None else dropout_keys[batch.cu_seqlens[:-1]]
        return {"logits": self.classifier(self.dropout(x, sequence_keys))}


def build_relation_head(config: EncoderConfig, num_labels: int, classifier_dropout: float = 0.1) -> RelationHead:
    """Builds the head.

    Args:
        config: Encoder configuration.
        num_labels: Number of scores.
        classifier_dropout: Probability of dropping a channel before the classifier.
    """
    return RelationHead(
        dropout=HashedDropout(classifier_dropout, "classifier"),
        classifier=nn.Linear(2 * config.hidden_size, num_labels),
    )
