"""Brings each matrix of a sharded model whole to one rank and takes the result back.

For updates that need the full matrix. Every rank doing all of them would cost world-size times the work; gathering one
matrix after the other would cost about ten small collectives each. Sharded matrices need two all-to-alls per step;
results of matrices that every rank holds whole are broadcast by their owners. No buffer is larger than all matrices
together, and only those of matrices that are sharded along one axis and copied along another (tensor parallel) grow
with the number of copies.
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


Layout = tuple[torch.Size, tuple[str, ...], tuple[Placement, ...]]
"""Shape of a whole matrix, the mesh axes over which it is distributed, and its placement along each."""


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
    """Knows who owns which matrix, and does the two transfers.

    Args:
        parameters: The same on every rank: plain 2-D tensors, which every rank holds whole, or DTensors over all ranks
            of the process group or over some axes of their mesh. One of them must be over all axes. Where an axis
            holds copies of what another one shards, copies do the same work side by side, rather than wait for
            results from another host.
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
            parts: What this rank holds of each matrix, all of one dtype.

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
        """Hands results out again. Collective: all ranks must call.

        Args:
            results: Full matrices that this rank owns, by index.
            like: What `to_owners` got; gives dtype, device and shape of the parts.

        Returns:
            This rank's part of each matrix.
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
