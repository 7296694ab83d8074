"""Minimal heads for tokens or choices, with the parameter names that exports expect."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.tasks.pooling import POOLINGS, Pooler, family_transform


class TokenHead(nn.Module):
    """Computes label scores of every token: (tokens, labels)."""

    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.transform = family_transform(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, keys: Tensor | None = None) -> dict[str, Tensor]:
        x = hidden_states if self.transform is None else self.transform(hidden_states)
        return {"logits": self.classifier(x)}


class SpanHead(nn.Module):
    """Computes scores of every token as start and end of an answer: (tokens, 2)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = family_transform(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, keys: Tensor | None = None) -> dict[str, Tensor]:
        x = hidden_states if self.transform is None else self.transform(hidden_states)
        return {"logits": self.qa_outputs(x)}


class ChoiceHead(nn.Module):
    """Computes one score for each sequence, which holds one choice: (sequences, 1)."""

    def __init__(self, config: EncoderConfig, pooling: str = "cls") -> None:
        super().__init__()
        self.pooling = POOLINGS[pooling]
        self.transform = family_transform(config)
        self.pooler = Pooler(config) if self.transform is None else None
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, keys: Tensor | None = None) -> dict[str, Tensor]:
        project = self.pooler or self.transform
        assert project is not None
        return {"logits": self.classifier(project(self.pooling(hidden_states, batch)))}
