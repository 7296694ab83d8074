"""Brings each matrix of a sharded model whole to one rank and takes the result back: two collectives a step.

For updates that need the full matrix. Every rank doing all of them would cost world-size times the work; gathering one
matrix after the other would cost about ten small collectives each.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor.placement_types import _StridedShard

Axes = tuple[tuple[str, int], ...]
"""Names and sizes of a mesh's axes; ranks are numbered along them, the last axis first."""

Block = tuple[int, int, int, int]
"""A rectangle of a matrix: first row, row after the last, first column, column after the last."""


def _assign_owners(shapes: Sequence[torch.Size], num_ranks: int) -> list[int]:
    """Gives each matrix to the rank with the least work so far, the most expensive first; the same on every rank."""
    load = [0] * num_ranks
    owners = [0] * len(shapes)
    costs = [shape[0] * shape[1] * min(shape) for shape in shapes]
    for index in sorted(range(len(shapes)), key=lambda index: (-costs[index], index)):
        owner = load.index(min(load))
        owners[index] = owner
        load[owner] += costs[index]
    return owners


def _block_of(shape: torch.Size, cuts: Sequence[tuple[Placement, int, int]]) -> Block:
    """The part of a matrix at one place of a mesh (torch.chunk's rule, one axis after the other).

    Args:
        shape: Of the whole matrix.
        cuts: For each axis its placement, the place along it, and its size.
    """
    bounds = [(0, shape[0]), (0, shape[1])]
    # A strided shard is cut last: it is a part of what the axes after it left (FSDP on top of tensor parallel).
    for placement, place, size in sorted(cuts, key=lambda cut: isinstance(cut[0], _StridedShard)):
        if not placement.is_replicate():
            dim: int = placement.dim  # type: ignore[attr-defined]
            start, stop = bounds[dim]
            chunk = -(-(stop - start) // size)
            bounds[dim] = (min(start + place * chunk, stop), min(start + (place + 1) * chunk, stop))
    return (*bounds[0], *bounds[1])


@functools.cache
def _blocks(shape: torch.Size, names: tuple[str, ...], placements: tuple[Placement, ...], axes: Axes) -> list[Block]:
    """What each rank holds of a matrix.

    Args:
        shape: Of the whole matrix.
        names: Axes over which it is spread; along all others it is replicated.
        placements: One for each of these.
        axes: Of the ranks; along others all matrices are replicated.
    """
    sizes = dict(axes)
    blocks = []
    for rank in range(int(np.prod([size for _, size in axes], dtype=np.int64))):
        places = dict(zip(sizes, np.unravel_index(rank, list(sizes.values())), strict=True))
        spread = zip(names, placements, strict=True)
        cuts = [(placement, int(places[name]), sizes[name]) for name, placement in spread if name in sizes]
        blocks.append(_block_of(shape, cuts))
    return blocks


def _names(parameter: DTensor) -> tuple[str, ...]:
    names = parameter.device_mesh.mesh_dim_names
    assert names is not None
    return names


def _shared_axes(parameters: Sequence[Tensor]) -> set[str]:
    """The axes along which any of the matrices is sharded."""
    return {
        name
        for parameter in parameters
        if isinstance(parameter, DTensor)
        for name, placement in zip(_names(parameter), parameter.placements, strict=True)
        if not placement.is_replicate()
    }


def _cut(matrix: Tensor, block: Block) -> Tensor:
    return matrix[block[0] : block[1], block[2] : block[3]]


def _num_elements(block: Block) -> int:
    return (block[1] - block[0]) * (block[3] - block[2])


class MatrixExchange:
    """Who owns which matrix, and the two transfers.

    Args:
        parameters: The same on every rank: plain 2-D tensors, which every rank holds whole, or DTensors over all ranks
            of the process group or over some axes of their mesh. One of them must be over all axes. Where an axis
            holds copies of what another one shards, copies do the same work side by side, rather than wait for
            results from another host.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.shapes = [parameter.shape for parameter in parameters]
        meshes = [parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)]
        mesh = max(meshes, key=lambda mesh: mesh.ndim, default=None)
        axes: Axes = ()
        self.rank, self.group = 0, None
        if mesh is not None:
            assert mesh.mesh_dim_names is not None and mesh.size() == dist.get_world_size()
            axes = tuple(zip(mesh.mesh_dim_names, mesh.shape, strict=True))
            self.rank = dist.get_rank()
            shared = _shared_axes(parameters)
            if 0 < len(shared) < len(axes):
                (name,) = shared
                axes = ((name, mesh[name].size()),)
                self.rank, self.group = mesh.get_local_rank(name), mesh.get_group(name)
        self.num_ranks = int(np.prod([size for _, size in axes], dtype=np.int64))
        self.owners = _assign_owners(self.shapes, self.num_ranks)
        self.blocks = [
            _blocks(parameter.shape, _names(parameter), parameter.placements, axes)
            if isinstance(parameter, DTensor)
            else _blocks(parameter.shape, (), (), axes)
            for parameter in parameters
        ]

    def _owned_by(self, rank: int) -> list[int]:
        return [index for index, owner in enumerate(self.owners) if owner == rank]

    def _sends(self, holder: int, index: int) -> bool:
        """Whether this holder sends its block to the owner: of equal ones the owner's own, else one in turn."""
        blocks, owner = self.blocks[index], self.owners[index]
        if blocks[holder] == blocks[owner]:
            return holder == owner
        equal = [rank for rank, block in enumerate(blocks) if block == blocks[holder]]
        return holder == equal[index % len(equal)]

    def to_owners(self, parts: Sequence[Tensor]) -> dict[int, Tensor]:
        """Collects the matrices that this rank owns. Collective: all ranks must call.

        Args:
            parts: What this rank holds of each matrix, all of one dtype.

        Returns:
            Full matrices (rows, columns) by index.
        """
        mine, ranks = self._owned_by(self.rank), range(self.num_ranks)
        if all(
            set(blocks) == {(0, shape[0], 0, shape[1])} for shape, blocks in zip(self.shapes, self.blocks, strict=True)
        ):
            return {index: parts[index] for index in mine}
        outgoing = [[index for index in self._owned_by(rank) if self._sends(self.rank, index)] for rank in ranks]
        incoming = [[index for index in mine if self._sends(rank, index)] for rank in ranks]
        blocks = [[(index, self.blocks[index][rank]) for index in incoming[rank]] for rank in ranks]
        received = _all_to_all(
            [[parts[index] for index in indices] for indices in outgoing],
            [[_num_elements(block) for _, block in each] for each in blocks],
            parts[0],
            self.group,
        )
        full = {index: parts[index].new_empty(self.shapes[index]) for index in mine}
        for (index, block), flat in zip((pair for each in blocks for pair in each), received, strict=True):
            target = _cut(full[index], block)
            target.copy_(flat.view(target.shape))
        return full

    def from_owners(self, results: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Hands results out again. Collective: all ranks must call.

        Args:
            results: Full matrices that this rank owns, by index.
            like: What `to_owners` got; gives dtype, device and shape of the parts.

        Returns:
            This rank's part of each matrix.
        """
        if self.num_ranks == 1:
            return [results[index] for index in range(len(self.shapes))]
        mine, ranks = self._owned_by(self.rank), range(self.num_ranks)
        order = [self._owned_by(rank) for rank in ranks]
        received = _all_to_all(
            [[_cut(results[index], self.blocks[index][rank]) for index in mine] for rank in ranks],
            [[like[index].numel() for index in indices] for indices in order],
            like[0],
            self.group,
        )
        parts = dict(zip((index for indices in order for index in indices), received, strict=True))
        return [parts[index].view(like[index].shape) for index in range(len(self.shapes))]


def _all_to_all(
    outgoing: list[list[Tensor]], sizes: list[list[int]], like: Tensor, group: dist.ProcessGroup | None
) -> Sequence[Tensor]:
    """Sends tensors to each rank and gets others.

    Args:
        outgoing: For each rank.
        sizes: Elements of each tensor that comes from each rank.
        like: Gives dtype and device.
        group: Of the ranks; None: all.

    Returns:
        What came, flat, from rank 0 on.
    """
    flat = [tensor.flatten() for tensors in outgoing for tensor in tensors]
    sent = torch.cat(flat) if flat else like.new_empty(0)
    received = like.new_empty(sum(map(sum, sizes)))
    num_sent = [sum(tensor.numel() for tensor in tensors) for tensors in outgoing]
    dist.all_to_all_single(received, sent, [sum(each) for each in sizes], num_sent, group=group)
    return received.split([size for each in sizes for size in each])
