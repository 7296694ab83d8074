"""Step-level toy task: the first token of a sequence must match its own last token among those of the whole step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.step_level import StepLevelTask
from tests.support.training.toy_run import ToySource

TEMPERATURE = 0.2
QUERY, KEY = 0, 1


class ContrastHead(nn.Module):
    """Head that projects the first and the last token of each sequence."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, 8)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None) -> dict[str, Tensor]:
        first, last = batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long() - 1
        return {"query": self.projection(hidden_states[first]), "key": self.projection(hidden_states[last])}


class ContrastTask(StepLevelTask):
    """Task with InfoNCE over the step (`contrast`) and the squared length of labelled queries (`pair`).

    A sequence has two rows with different roles. The loss assumes the same order of rows for both roles.
    """

    best_metric = "loss"
    best_mode = "min"
    wraps_epochs = True

    def __init__(self) -> None:
        self.loss_weights = {"contrast": 1.0, "pair": 0.01}

    def build_sources(self, data: object, tokenizer: object, seed: int) -> dict[str, ToySource]:
        return {"train": ContrastSource(37), "validation": ContrastSource(11)}

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        return ContrastHead(config.hidden_size)

    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        count = len(batch.sequence_ids)
        roles = torch.tensor([QUERY, KEY]).repeat_interleave(count)
        return {
            "embeddings": torch.cat([outputs["query"], outputs["key"]]),
            "roles": roles,
            "labels": torch.cat([batch.targets["labels"]] * 2),
            "sequence_ids": torch.cat([batch.sequence_ids] * 2),
        }

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        is_query = rows["roles"] == QUERY
        query, key = rows["embeddings"][is_query], rows["embeddings"][~is_query]
        scores = functional.normalize(query, dim=1) @ functional.normalize(key, dim=1).T / TEMPERATURE
        lengths = query[rows["labels"][is_query] != IGNORE_INDEX].square().sum()
        return {
            "contrast": functional.cross_entropy(scores, torch.arange(len(query)), reduction="sum"),
            "pair": lengths,
        }

    def build_metrics(self) -> dict[str, Metric]:
        return {}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Does nothing, since the task has no metrics."""


class ContrastSource(ToySource):
    """Source of the toy run's sequences, each of which counts."""

    def build(self, sequences, step, shape=None) -> PackedBatch:  # type: ignore[no-untyped-def]
        batch = super().build(sequences, step, shape)
        batch.counts["contrast"] = len(sequences)  # type: ignore[index]
        return batch
