"""Embeddings of picture patches: a linear layer on the pixels and, optionally, positions of rows and columns."""

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.nn.embeddings import EmbeddingTable
from framework.nn.grid_positions import GridPositions

HALF_RANGE = 127.5
"""Half of the largest pixel value. Pixels are scaled to [-1, 1] as x / 127.5 - 1."""

CHANNELS = 3
"""Channels of a pixel: red, green and blue."""


class PatchEmbeddings(nn.Module):
    """Linear layer on each patch, plus an embedding of its row and one of its column.

    The linear layer equals a convolution whose stride is the size of its kernel (Dosovitskiy et al. 2021, "ViT",
    arXiv:2010.11929, section 3.1). Positions are factorised, so that pictures keep their aspect ratio (Dehghani et al.
    2023, "NaViT", arXiv:2307.06304, section 2.1). Initial weights come from `framework.nn.initialization`, with a
    standard deviation of 0.02 by default; with the larger default of torch, contrastive training stayed at chance.

    Args:
        patch_size: Edge of a patch in pixels.
        hidden_size: Width of the embeddings.
        grid_size: Rows of each of the two position tables, which limit the rows and columns of a picture; 0: no
            such tables.
        grid_positions: Positions from a square grid instead; None: none.
    """

    def __init__(
        self, patch_size: int, hidden_size: int, grid_size: int, grid_positions: GridPositions | None = None
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(patch_size * patch_size * CHANNELS, hidden_size)
        self.row_embeddings = EmbeddingTable(grid_size, hidden_size) if grid_size else None
        self.column_embeddings = EmbeddingTable(grid_size, hidden_size) if grid_size else None
        self.grid_positions = grid_positions

    def forward(self, embeddings: Tensor, batch: PackedBatch) -> Tensor:
        """Replaces the embeddings of the tokens that stand for patches.

        A batch without pictures changes nothing. Its gradients of the patch weights are zeros, so that all ranks
        reduce the same gradients.

        Args:
            embeddings: (tokens, hidden) sum of the embeddings of words, positions and segments.
            batch: Batch with the patches and their tokens.

        Returns:
            (tokens, hidden).
        """
        patches, tokens, places = batch.patches, batch.patch_tokens, batch.patch_places
        if patches is None or tokens is None or places is None:
            tokens = batch.input_ids.new_zeros(0)
            patches, places = tokens.new_zeros(0, self.projection.in_features), tokens.new_zeros(0, 2)
        embedded = self.projection(patches.float() / HALF_RANGE - 1.0)
        if batch.patch_is_masked is not None:
            embedded = torch.where(batch.patch_is_masked[:, None], embeddings.index_select(0, tokens), embedded)
        embedded = self._with_places(embedded, places)
        if self.grid_positions is not None:
            embedded = embedded + self.grid_positions(places, _grid_sizes(batch, tokens, places))
        return embeddings.index_copy(0, tokens, embedded.to(embeddings.dtype))

    def embed(self, patches: Tensor, places: Tensor) -> Tensor:
        """Maps pixels to embeddings.

        Args:
            patches: (patches, patch_dim) uint8, as in PackedBatch.
            places: (patches, 2) int64, row and column of each patch.

        Returns:
            (patches, hidden).
        """
        return self._with_places(self.projection(patches.float() / HALF_RANGE - 1.0), places)

    def _with_places(self, embeddings: Tensor, places: Tensor) -> Tensor:
        if self.row_embeddings is not None and self.column_embeddings is not None:
            embeddings = embeddings + self.row_embeddings(places[:, 0]) + self.column_embeddings(places[:, 1])
        return embeddings


def _grid_sizes(batch: PackedBatch, tokens: Tensor, places: Tensor) -> Tensor:
    """Returns (patches, 2) int64, the rows and columns of each patch's picture, the only one of its sequence."""
    sequences = torch.searchsorted(batch.cu_seqlens[1:].long(), tokens, right=True)
    last = places.new_zeros(len(batch.cu_seqlens) - 1, 2)
    last = last.scatter_reduce(0, sequences[:, None].expand(-1, 2), places, "amax")
    return last[sequences] + 1
