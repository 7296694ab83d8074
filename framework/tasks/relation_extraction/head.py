"""Head of relation extraction, from the hidden states at the marks before both entities to one score per label."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.nn.dropout import HashedDropout
from framework.tasks.sequence_classification.head import SequenceClassificationHead


def pool_entities(hidden_states: Tensor, batch: PackedBatch) -> Tensor:
    """Concatenates the hidden states at both entity starts: (tokens, hidden) to (sequences, 2 x hidden)."""
    starts = batch.targets["entity_starts"].clamp(min=0)  # dummies have none
    return hidden_states[starts].flatten(start_dim=1)


def build_relation_head(
    config: EncoderConfig, num_labels: int, classifier_dropout: float = 0.1
) -> SequenceClassificationHead:
    """Builds the head of Baldini Soares et al. 2019, sections 3.2 and 3.3.

    Args:
        config: Encoder configuration.
        num_labels: Number of scores.
        classifier_dropout: Probability of dropping a channel before the classifier.
    """
    return SequenceClassificationHead(
        pooling=pool_entities,
        dropout=HashedDropout(classifier_dropout, "classifier"),
        classifier=nn.Linear(2 * config.hidden_size, num_labels),
    )
