"""Embedding head: pooled hidden states, without weights."""

from torch import Tensor, nn
from torch.nn.functional import normalize

from framework.batch import PackedBatch
from framework.tasks.pooling import Pooling


class EmbeddingHead(nn.Module):
    """Pooling and optional L2 normalization.

    Args:
        pooling: Pooling function of `framework.tasks.pooling`.
        normalizes: Scale embeddings to length 1.
    """

    def __init__(self, pooling: Pooling, normalizes: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalizes = normalizes

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes one vector per sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch with the offsets of the sequences.
            dropout_keys: Unused.

        Returns:
            `embeddings` (sequences, hidden) fp32.
        """
        embeddings = self.pooling(hidden_states, batch).float()
        return {"embeddings": normalize(embeddings, dim=1) if self.normalizes else embeddings}
