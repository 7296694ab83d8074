"""Head of embeddings: pooled hidden states, nothing to learn."""

from torch import Tensor, nn
from torch.nn.functional import normalize

from framework.batch import PackedBatch
from framework.tasks.pooling import Pooling


class EmbeddingHead(nn.Module):
    """Pooling, and division by the length.

    Args:
        pooling: A function of `framework.tasks.pooling`.
        normalizes: Whether embeddings get length 1.
    """

    def __init__(self, pooling: Pooling, normalizes: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalizes = normalizes

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        dropout_keys: Tensor | None = None,  # noqa: ARG002  it has no dropout
    ) -> dict[str, Tensor]:
        """One vector for each sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Gives the offsets of the sequences.
            dropout_keys: Not used.

        Returns:
            `embeddings` (sequences, hidden) fp32.
        """
        embeddings = self.pooling(hidden_states, batch).float()
        return {"embeddings": normalize(embeddings, dim=1) if self.normalizes else embeddings}
