"""Grid positions equal torch's bicubic interpolation, values and gradients, for pictures of different grids at once."""

import pytest
import torch
from torch.nn import functional

from framework.nn.grid_positions import GridPositions

GRIDS = [(4, 4), (2, 7), (9, 3), (1, 1), (5, 4)]


def places(grids: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    """Returns row and column of each patch of some pictures, and rows and columns of its picture."""
    patches = [(row, column, *grid) for grid in grids for row in range(grid[0]) for column in range(grid[1])]
    return torch.tensor(patches).split(2, dim=1)


def interpolated(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Returns (rows * columns, hidden) as `ViTEmbeddings.interpolate_pos_encoding` of transformers computes it."""
    square = table.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2)


def test_positions_are_interpolated_as_by_transformers() -> None:
    torch.manual_seed(0)
    module = GridPositions(4, 6)
    ours = module(*places(GRIDS))
    expected = torch.cat([interpolated(module.weight, grid) for grid in GRIDS])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(ours.shape)
    (mine,) = torch.autograd.grad((ours * weights).sum(), module.weight)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), module.weight)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_pictures_of_the_tables_own_grid_get_its_rows_unchanged(count: int) -> None:
    module = GridPositions(4, 6)
    assert torch.equal(module(*places([(4, 4)] * count)), module.weight.repeat(count, 1))
