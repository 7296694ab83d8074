"""Matrices are gathered on one rank and returned, for any layout on a mesh; no buffer grows with the ranks."""

from itertools import cycle

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framework.optim.matrix_exchange import MatrixExchange
from tests.support.processes.workers import WorkerPool

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
    """Returns the matrices that this rank got completely, and whether its part of twice each of them returned."""
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
def test_each_matrix_is_gathered_on_one_rank_and_returned_in_parts(workers: WorkerPool, layout: str) -> None:
    sizes = LAYOUTS[layout][0].values()
    found = workers.run(exchange, torch.Size(sizes).numel(), layout)
    # Copies of matrices that another axis shards work in parallel; plain copies divide the work.
    times = 2 if layout == "copies of rows" else 1
    assert sorted(index for owned, _ in found for index in owned) == sorted([*range(len(SHAPES))] * times)
    assert all(all(back) for _, back in found)


def test_plain_matrices_of_one_process_are_not_moved() -> None:
    both = MatrixExchange(matrices())
    whole = both.to_owners(matrices())
    assert all(torch.equal(whole[index], matrix) for index, matrix in enumerate(matrices()))
    back = both.from_owners(whole, matrices())
    assert all(torch.equal(came, matrix) for came, matrix in zip(back, matrices(), strict=True))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operator takes or returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        seen = (leaf.numel() for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        self.numel = max(self.numel, *seen, 0)
        return out


GROWING: dict[str, tuple[list[str], list[tuple[Placement, ...]]]] = {
    "ddp": (["dp_replicate"], [(Replicate(),)]),
    "fsdp2": (["dp_shard"], [(Shard(0),)]),
    "hsdp": (["dp_replicate", "dp_shard"], [(Replicate(), Shard(0))]),
    "tp": (["tp"], [(Shard(0),), (Shard(1),), (Replicate(),)]),
    "fsdp2_tp": (["dp_shard", "tp"], LAYOUTS["rows of rows, of columns, of copies"][1]),
}


def largest_buffers(layout: str) -> list[tuple[int, int]]:
    """Returns the elements of the largest tensor in both transfers and of all matrices, for 4, 64 and 1024 ranks."""
    names, kinds = GROWING[layout]
    whole = [torch.ones(32, 48) for _ in range(12)]
    found = []
    for num_ranks in (4, 64, 1024):
        dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=num_ranks)
        sizes = (num_ranks,) if len(names) == 1 else (num_ranks // 2, 2)
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=tuple(names))
        spread = [
            distribute_tensor(matrix, mesh if len(kind) == mesh.ndim else mesh[names[0]], kind, src_data_rank=None)
            for matrix, kind in zip(whole, cycle(kinds), strict=False)
        ]
        parts = [matrix.to_local() for matrix in spread]
        both = MatrixExchange(spread)
        with LargestTensor() as largest:
            owned = both.to_owners(parts)
            both.from_owners(owned, parts)
        assert owned or num_ranks > len(whole)
        found.append((largest.numel, sum(matrix.numel() for matrix in whole)))
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return found


@pytest.mark.parametrize("layout", GROWING)
def test_no_buffer_grows_with_the_number_of_ranks(workers: WorkerPool, layout: str) -> None:
    (found,) = workers.run(largest_buffers, 1, layout)
    largest = [numel for numel, _ in found]
    assert largest == sorted(largest, reverse=True)
    assert all(numel <= total for numel, total in found)
