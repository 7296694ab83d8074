"""Collects each matrix of a sharded model on one rank, and distributes the result.

Some updates need full matrices. If every rank computed all of them, the work would grow with the world size, and
gathering the matrices one by one would take about ten small collectives each. Sharded matrices take two all-to-alls per
step. Results of matrices that every rank holds in full are broadcast by their owners. No buffer is larger than all
matrices together. Only buffers of matrices that are sharded along one axis and replicated along another (tensor
parallel) grow with the number of replicas.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor.placement_types import _StridedShard

Axes = tuple[tuple[str, int], ...]
"""Names and sizes of the axes of a mesh. Rank numbers vary fastest along the last axis."""

Block = tuple[int, int, int, int]
"""Rectangle of a matrix: row start, row stop, column start, column stop."""


def _assign_owners(shapes: Sequence[torch.Size], num_ranks: int) -> list[int]:
    """Assigns each matrix, the most expensive first, to the rank with the least work; all ranks get the same result."""
    load = [0] * num_ranks
    owners = [0] * len(shapes)
    costs = [shape[0] * shape[1] * min(shape) for shape in shapes]
    for index in sorted(range(len(shapes)), key=lambda index: (-costs[index], index)):
        owner = load.index(min(load))
        owners[index] = owner
        load[owner] += costs[index]
    return owners


def _block_of(shape: torch.Size, cuts: Sequence[tuple[Placement, int, int]]) -> Block:
    """Returns the block of a matrix at one position of a mesh (torch.chunk's rule, axis by axis).

    Args:
        shape: Shape of the full matrix.
        cuts: Placement, index along the axis, and size of the axis, for each axis.
    """
    bounds = [(0, shape[0]), (0, shape[1])]
    # A strided shard is cut last: it divides what the later axes left (FSDP on top of tensor parallel).
    for placement, index, size in sorted(cuts, key=lambda cut: isinstance(cut[0], _StridedShard)):
        if not placement.is_replicate():
            dim: int = placement.dim  # type: ignore[attr-defined]
            start, stop = bounds[dim]
            chunk = -(-(stop - start) // size)
            bounds[dim] = (min(start + index * chunk, stop), min(start + (index + 1) * chunk, stop))
    return (*bounds[0], *bounds[1])


@functools.cache
def _blocks(shape: torch.Size, names: tuple[str, ...], placements: tuple[Placement, ...], axes: Axes) -> list[Block]:
    """Returns the block of a matrix that each rank holds.

    Args:
        shape: Shape of the full matrix.
        names: Axes along which the matrix is distributed. It is replicated along all others.
        placements: Placement along each of these axes.
        axes: Axes of the ranks. All matrices are replicated along other axes.
    """
    sizes = dict(axes)
    blocks = []
    for rank in range(int(np.prod([size for _, size in axes], dtype=np.int64))):
        indices = dict(zip(sizes, np.unravel_index(rank, list(sizes.values())), strict=True))
        spread = zip(names, placements, strict=True)
        cuts = [(placement, int(indices[name]), sizes[name]) for name, placement in spread if name in sizes]
        blocks.append(_block_of(shape, cuts))
    return blocks


def _names(parameter: DTensor) -> tuple[str, ...]:
    names = parameter.device_mesh.mesh_dim_names
    assert names is not None
    return names


def _shared_axes(parameters: Sequence[Tensor]) -> set[str]:
    """Returns the axes along which any of the matrices is sharded."""
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


Layout = tuple[torch.Size, tuple[str, ...], tuple[Placement, ...]]
"""Shape of a full matrix, the mesh axes along which it is distributed, and its placement along each."""


def _layout(parameter: Tensor) -> Layout:
    if isinstance(parameter, DTensor):
        return parameter.shape, _names(parameter), tuple(parameter.placements)
    return parameter.shape, (), ()


@dataclass(frozen=True)
class _Routes:
    """Plan of the matrices and blocks that one rank keeps, sends and receives.

    Attributes:
        owned: Indices of the matrices that this rank owns.
        copied: Indices of the matrices that all ranks hold whole, by owner.
        to_owners: Indices of the matrices of which this rank sends its block, by receiver.
        at_owner: Indices and blocks that this rank receives as owner, by sender.
        from_owner: Indices and blocks of results that this rank sends, by receiver.
        at_holder: Indices of the results of which this rank receives its block, by sender.
    """

    owned: tuple[int, ...]
    copied: dict[int, list[int]]
    to_owners: list[list[int]]
    at_owner: list[list[tuple[int, Block]]]
    from_owner: list[list[tuple[int, Block]]]
    at_holder: list[list[int]]


@functools.lru_cache(maxsize=16)
def _routes(layouts: tuple[Layout, ...], axes: Axes, rank: int) -> _Routes:
    """Plans both transfers; the plan is the same for every step."""
    num_ranks = int(np.prod([size for _, size in axes], dtype=np.int64))
    ranks = range(num_ranks)
    owners = _assign_owners([shape for shape, _, _ in layouts], num_ranks)
    routes = _Routes(
        owned=tuple(index for index, owner in enumerate(owners) if owner == rank),
        copied={},
        to_owners=[[] for _ in ranks],
        at_owner=[[] for _ in ranks],
        from_owner=[[] for _ in ranks],
        at_holder=[[] for _ in ranks],
    )
    for index, (layout, owner) in enumerate(zip(layouts, owners, strict=True)):
        blocks = _blocks(*layout, axes)
        if all(block == (0, layout[0][0], 0, layout[0][1]) for block in blocks):
            routes.copied.setdefault(owner, []).append(index)
            continue
        senders = _senders(blocks, owner, index)
        if rank in senders:
            routes.to_owners[owner].append(index)
        routes.at_holder[owner].append(index)
        if owner == rank:
            for other in ranks:
                routes.from_owner[other].append((index, blocks[other]))
                if other in senders:
                    routes.at_owner[other].append((index, blocks[other]))
    return routes


def _senders(blocks: Sequence[Block], owner: int, index: int) -> set[int]:
    """Returns the sender of each block: the owner if it holds the block, else one of the holders in turn."""
    holders: dict[Block, list[int]] = {}
    for rank, block in enumerate(blocks):
        holders.setdefault(block, []).append(rank)
    return {owner if block == blocks[owner] else equal[index % len(equal)] for block, equal in holders.items()}


class MatrixExchange:
    """Assigns matrices to owners, and performs both transfers.

    Args:
        parameters: Parameters in the same order on every rank: plain 2-D tensors, which every rank holds in full, or
            DTensors over all ranks or over some axes of their mesh. One of them must be over all axes. Along an axis
            that only replicates, all replicas do the same work instead of waiting for results from another host.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
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
        self._routes = _routes(tuple(map(_layout, parameters)), axes, self.rank)
        self._shapes = [parameter.shape for parameter in parameters]

    def to_owners(self, parts: Sequence[Tensor]) -> dict[int, Tensor]:
        """Collects the matrices that this rank owns. Collective: all ranks must call.

        Args:
            parts: Local part of each matrix, all of one dtype.

        Returns:
            Full matrices (rows, columns) by index.
        """
        routes = self._routes
        full = {index: parts[index] for index in routes.copied.get(self.rank, ())}
        if not any(routes.at_holder):
            return full
        full |= {index: parts[index].new_empty(self._shapes[index]) for index in routes.owned if index not in full}
        received = _all_to_all(
            [[parts[index] for index in indices] for indices in routes.to_owners],
            [[_num_elements(block) for _, block in each] for each in routes.at_owner],
            parts[0],
            self.group,
        )
        for (index, block), flat in zip((pair for each in routes.at_owner for pair in each), received, strict=True):
            target = _cut(full[index], block)
            target.copy_(flat.view(target.shape))
        return full

    def from_owners(self, results: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Distributes the results. Collective: all ranks must call.

        Args:
            results: Full matrices that this rank owns, by index.
            like: Argument `parts` of `to_owners`; gives dtype, device and shape of the parts.

        Returns:
            Local part of each matrix.
        """
        routes = self._routes
        if len(routes.at_holder) == 1:
            return [results[index] for index in range(len(like))]
        parts = self._broadcast(results, like)
        if any(routes.at_holder):
            received = _all_to_all(
                [[_cut(results[index], block) for index, block in each] for each in routes.from_owner],
                [[like[index].numel() for index in indices] for indices in routes.at_holder],
                like[0],
                self.group,
            )
            parts |= zip((index for indices in routes.at_holder for index in indices), received, strict=True)
        return [parts[index].view(like[index].shape) for index in range(len(like))]

    def _broadcast(self, results: Mapping[int, Tensor], like: Sequence[Tensor]) -> dict[int, Tensor]:
        """Returns the results, flat, of the matrices that all ranks hold whole, by one broadcast from each owner."""
        flats, pending = {}, []
        for owner, indices in self._routes.copied.items():
            if owner == self.rank:
                flats[owner] = torch.cat([results[index].flatten() for index in indices])
            else:
                flats[owner] = like[0].new_empty(sum(like[index].numel() for index in indices))
            pending.append(dist.broadcast(flats[owner], group=self.group, async_op=True, group_src=owner))
        for work in pending:
            work.wait()
        parts: dict[int, Tensor] = {}
        for owner, indices in self._routes.copied.items():
            parts |= zip(indices, flats[owner].split([like[index].numel() for index in indices]), strict=True)
        return parts


def _all_to_all(
    outgoing: list[list[Tensor]], sizes: list[list[int]], like: Tensor, group: dist.ProcessGroup | None
) -> Sequence[Tensor]:
    """Sends tensors to every rank and receives theirs.

    Args:
        outgoing: Tensors for each rank.
        sizes: Number of elements of each tensor received from each rank.
        like: Tensor that gives dtype and device.
        group: Process group of the ranks; None: all ranks.

    Returns:
        Flat received tensors, ordered by rank.
    """
    flat = [tensor.flatten() for tensors in outgoing for tensor in tensors]
    sent = torch.cat(flat) if flat else like.new_empty(0)
    received = like.new_empty(sum(map(sum, sizes)))
    num_sent = [sum(tensor.numel() for tensor in tensors) for tensors in outgoing]
    dist.all_to_all_single(received, sent, [sum(each) for each in sizes], num_sent, group=group)
    return received.split([size for each in sizes for size in each])
