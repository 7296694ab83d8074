"""Positions of patches from a learned square grid, interpolated for pictures with other grids (ViT, CLIP, SigLIP)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SHARPNESS = -0.75
"""Coefficient of the cubic convolution kernel (Keys 1981, equation 4), as in `torch.nn.functional.interpolate`."""


def _cubic_weights(fraction: Tensor) -> Tensor:
    """Returns (patches, 4) the weights of cells -1 to 2, given the distance from cell 0: (patches,) in [0, 1)."""
    a = _SHARPNESS
    outer, inner = torch.stack((fraction + 1, 2 - fraction), dim=1), torch.stack((fraction, 1 - fraction), dim=1)
    far = ((a * outer - 5 * a) * outer + 8 * a) * outer - 4 * a
    near = ((a + 2) * inner - (a + 3)) * inner * inner + 1
    return torch.stack((far[:, 0], near[:, 0], near[:, 1], far[:, 1]), dim=1)


def _cells(index: Tensor, count: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns the cells (patches, 4) along one axis of the grid that a patch interpolates, and their weights.

    Args:
        index: (patches,) int64, row or column of each patch.
        count: (patches,) int64, rows or columns of its picture.
        side: Cells of the grid along the axis.
    """
    source = (index + 0.5) * (side / count) - 0.5
    base = source.floor()
    cells = base.long()[:, None] + torch.arange(-1, 3, device=index.device)
    return cells.clamp(0, side - 1), _cubic_weights(source - base)


class GridPositions(nn.Embedding):
    """Table of a square grid (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1), with bicubic interpolation.

    A picture whose grid has as many rows and columns as the table gets its rows unchanged. Any other grid is
    interpolated as by `interpolate_pos_encoding` in transformers: bicubic, corners not aligned, borders repeated.

    Args:
        side: Rows and columns of the grid.
        hidden_size: Width of the embeddings.
    """

    def __init__(self, side: int, hidden_size: int) -> None:
        super().__init__(side * side, hidden_size)
        self.side = side

    def reset_parameters(self) -> None:
        """Initializes weights that have values, as `framework.nn.embeddings.EmbeddingTable` does."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, places: Tensor, sizes: Tensor) -> Tensor:  # type: ignore[override]
        """Returns the position embedding of each patch.

        Args:
            places: (patches, 2) int64, row and column of each patch in its picture.
            sizes: (patches, 2) int64, number of rows and columns of its picture.

        Returns:
            (patches, hidden) fp32.
        """
        row_cells, row_weights = _cells(places[:, 0], sizes[:, 0], self.side)
        column_cells, column_weights = _cells(places[:, 1], sizes[:, 1], self.side)
        cells = (row_cells[:, :, None] * self.side + column_cells[:, None, :]).flatten(1)
        weights = (row_weights[:, :, None] * column_weights[:, None, :]).flatten(1).to(self.weight.dtype)
        return functional.embedding_bag(cells, self.weight, mode="sum", per_sample_weights=weights)
