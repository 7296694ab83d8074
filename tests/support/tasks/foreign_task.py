"""A task that the package does not know, with a head whose parameters have names of their own."""

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.pooling import pool_mean
from framework.tasks.sequence_classification.task import SequenceClassificationTask


class PrototypeHead(nn.Module):
    """The score of a label is how well the mean of the tokens fits its prototype."""

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.prototypes = nn.Linear(hidden_size, num_labels, bias=False)

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        unit = nn.functional.normalize(pool_mean(hidden_states, batch), dim=-1)
        return {"logits": self.prototypes(unit.to(torch.float32))}


class PrototypeTask(SequenceClassificationTask):
    """Labels of texts by prototypes."""

    head_kind = "prototypes"

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        return PrototypeHead(config.hidden_size, len(self.labels))
