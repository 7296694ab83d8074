"""Brings each matrix of a sharded model whole to one rank and takes the result back: two collectives a step.

For updates that need the full matrix. Every rank doing all of them would cost world-size times the work; gathering one
matrix after the other would cost about ten small collectives each.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


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


def _rows_of(rank: int, rows: int, num_ranks: int) -> int:
    """Rows that a rank holds of a matrix sharded on dim 0 (torch.chunk's rule)."""
    chunk = -(-rows // num_ranks)
    return max(0, min(chunk, rows - rank * chunk))


class MatrixExchange:
    """Who owns which matrix, and the two transfers.

    Args:
        parameters: The same on every rank: plain 2-D tensors, or DTensors over one 1-D mesh, replicated or sharded on
            dim 0.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.shapes = [parameter.shape for parameter in parameters]
        self.rank, self.num_ranks, self.group = 0, 1, None
        self.sharded = False
        example = parameters[0]
        if isinstance(example, DTensor):
            mesh = example.device_mesh
            self.rank, self.num_ranks, self.group = mesh.get_local_rank(), mesh.size(), mesh.get_group()
            self.sharded = example.placements[0].is_shard()
        self.owners = _assign_owners(self.shapes, self.num_ranks)

    def _owned_by(self, rank: int) -> list[int]:
        return [index for index, owner in enumerate(self.owners) if owner == rank]

    def _split_sizes(self) -> tuple[list[int], list[int]]:
        """Elements that this rank holds for each owner, and elements that each rank holds for this one."""

        def held(holder: int, owner: int) -> int:
            return sum(
                _rows_of(holder, self.shapes[index][0], self.num_ranks) * self.shapes[index][1]
                for index in self._owned_by(owner)
            )

        ranks = range(self.num_ranks)
        return [held(self.rank, rank) for rank in ranks], [held(rank, self.rank) for rank in ranks]

    def to_owners(self, parts: Sequence[Tensor]) -> dict[int, Tensor]:
        """Collects the matrices that this rank owns. Collective: all ranks must call.

        Args:
            parts: What this rank holds of each matrix, all of one dtype.

        Returns:
            Full matrices (rows, columns) by index.
        """
        mine = self._owned_by(self.rank)
        if not self.sharded:
            return {index: parts[index] for index in mine}
        sent, received = self._split_sizes()
        outgoing = torch.cat(
            [parts[index].flatten() for rank in range(self.num_ranks) for index in self._owned_by(rank)]
        )
        incoming = outgoing.new_empty(sum(received))
        dist.all_to_all_single(incoming, outgoing, received, sent, group=self.group)
        full: dict[int, list[Tensor]] = {index: [] for index in mine}
        offset = 0
        for rank in range(self.num_ranks):
            for index in mine:
                rows, columns = _rows_of(rank, self.shapes[index][0], self.num_ranks), self.shapes[index][1]
                full[index].append(incoming[offset : offset + rows * columns].view(rows, columns))
                offset += rows * columns
        return {index: torch.cat(pieces) for index, pieces in full.items()}

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
        if self.sharded:
            return self._scatter(results, like)
        return self._broadcast(results, like)

    def _scatter(self, results: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        sent, received = self._split_sizes()
        mine = self._owned_by(self.rank)
        pieces = []
        for rank in range(self.num_ranks):
            for index in mine:
                chunk = -(-self.shapes[index][0] // self.num_ranks)
                pieces.append(results[index][rank * chunk : (rank + 1) * chunk].flatten())
        outgoing = torch.cat(pieces) if pieces else like[0].new_empty(0)
        incoming = like[0].new_empty(sum(sent))
        dist.all_to_all_single(incoming, outgoing, sent, received, group=self.group)
        order = [index for rank in range(self.num_ranks) for index in self._owned_by(rank)]
        parts = dict(zip(order, incoming.split([like[index].numel() for index in order]), strict=True))
        return [parts[index].view(like[index].shape) for index in range(len(self.shapes))]

    def _broadcast(self, results: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        parts: dict[int, Tensor] = {}
        for rank in range(self.num_ranks):
            indices = self._owned_by(rank)
            if not indices:
                continue
            if rank == self.rank:
                buffer = torch.cat([results[index].flatten() for index in indices])
            else:
                buffer = like[0].new_empty(sum(self.shapes[index].numel() for index in indices))
            dist.broadcast(buffer, group=self.group, group_src=rank)
            for index, flat in zip(
                indices, buffer.split([self.shapes[index].numel() for index in indices]), strict=True
            ):
                parts[index] = flat.view(self.shapes[index])
        return [parts[index] for index in range(len(self.shapes))]
