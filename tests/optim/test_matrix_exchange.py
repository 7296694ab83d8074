"""Matrices whole at one rank and back, however they lie on a mesh."""

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from framework.optim.matrix_exchange import MatrixExchange
from tests.workers import WorkerPool

SHAPES = [(7, 4), (3, 9), (12, 12), (1, 5), (6, 2)]
LAYOUTS: dict[str, tuple[dict[str, int], list[tuple[Placement, ...]]]] = {
    "copies": ({"dp_replicate": 3}, [(Replicate(),)]),
    "rows": ({"dp_shard": 3}, [(Shard(0),)]),
    "rows and columns": ({"tp": 4}, [(Shard(0),), (Shard(1),)]),
    "copies of rows": ({"dp_replicate": 2, "dp_shard": 2}, [(Replicate(), Shard(0))]),
    "rows of rows, of columns, of copies": (
        {"dp_shard": 2, "tp": 2},
        [(_StridedShard(0, split_factor=2), Shard(0)), (Shard(0), Shard(1)), (Shard(0),)],
    ),
}


def matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def exchange(layout: str) -> tuple[list[int], list[bool]]:
    """Which matrices came whole to this rank, and whether its part of twice each of them came back."""
    sizes, kinds = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    sharded = []
    for index, matrix in enumerate(matrices()):
        placements = kinds[index % len(kinds)]
        over = mesh if len(placements) == mesh.ndim else mesh["dp_shard"]
        sharded.append(distribute_tensor(matrix, over, placements, src_data_rank=None))
    both = MatrixExchange(sharded)
    parts = [matrix.to_local().contiguous() for matrix in sharded]
    whole = both.to_owners(parts)
    assert all(torch.equal(whole[index], matrices()[index]) for index in whole)
    back = both.from_owners({index: 2 * matrix for index, matrix in whole.items()}, parts)
    return sorted(whole), [torch.equal(came, 2 * part) for came, part in zip(back, parts, strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_matrix_comes_whole_to_one_rank_and_goes_back_in_parts(workers: WorkerPool, layout: str) -> None:
    sizes = LAYOUTS[layout][0].values()
    found = workers.run(exchange, torch.Size(sizes).numel(), layout)
    # Copies of what another axis shards work side by side; plain copies share the work.
    times = 2 if layout == "copies of rows" else 1
    assert sorted(index for owned, _ in found for index in owned) == sorted([*range(len(SHAPES))] * times)
    assert all(all(back) for _, back in found)


def test_plain_matrices_of_one_process_stay_where_they_are() -> None:
    both = MatrixExchange(matrices())
    whole = both.to_owners(matrices())
    assert all(torch.equal(whole[index], matrix) for index, matrix in enumerate(matrices()))
    back = both.from_owners(whole, matrices())
    assert all(torch.equal(came, matrix) for came, matrix in zip(back, matrices(), strict=True))
