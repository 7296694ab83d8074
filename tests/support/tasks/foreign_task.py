"""Task that the package does not contain, with a head whose parameter names no export knows."""

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.pooling import pool_mean
from framework.tasks.sequence_classification.task import SequenceClassificationTask


class PrototypeHead(nn.Module):
    """Head that scores a label by the similarity of the tokens' mean and the label's prototype."""

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.prototypes = nn.Linear(hidden_size, num_labels, bias=False)

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        unit = nn.functional.normalize(pool_mean(hidden_states, batch), dim=-1)
        return {"logits": self.prototypes(unit.to(torch.float32))}


class PrototypeTask(SequenceClassificationTask):
    """Sequence classification by prototypes."""

    head_kind = "prototypes"

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        return PrototypeHead(config.hidden_size, len(self.labels))
