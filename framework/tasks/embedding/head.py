"""Embedding head: pooled hidden states, without weights."""

import numpy as np
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


def item_vectors(embeddings: Tensor, batch: PackedBatch, most: int | None = None) -> list[np.ndarray]:
    """Returns the vectors of each real item on the host.

    Args:
        embeddings: (sequences, hidden).
        batch: Micro-batch of the embeddings.
        most: Number of sequences of an item whose vectors are returned; None: all.

    Returns:
        (sequences of the item, hidden) fp32 for each item.
    """
    members = (batch.sequence_ids[: batch.num_sequences] % batch.group_size).cpu().numpy()
    is_kept = members < (batch.group_size if most is None else most)
    vectors = embeddings[: batch.num_sequences].float().cpu().numpy()[is_kept]
    # Skip the split point of the first item, which would yield an empty first part.
    return np.split(vectors, np.flatnonzero(members[is_kept] == 0)[1:]) if len(vectors) else []
