"""Rows of all ranks that read different data, brought to each of them."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.distributed.mesh import data_parallel_groups


def gather_rows(rows: Mapping[str, Tensor], mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Puts the rows of all ranks end to end. Collective: all ranks must call; waits for the device.

    Ranks of tensor parallel hold the same rows, which come once. Gradients flow to the rank's own rows and no others,
    without a collective: it is for losses that every rank computes as a whole.

    Args:
        rows: (rows, ...) each, with the same number of rows, which may differ from rank to rank; the same names, dtypes
            and further dims on all ranks.
        mesh: Of the strategy; None: a single process.
    """
    gathered = dict(rows)
    for group in data_parallel_groups(mesh):
        gathered = _gather_over(gathered, group)
    return gathered


def _gather_over(rows: Mapping[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    size, own_place = dist.get_world_size(group), dist.get_rank(group)
    first = next(iter(rows.values()))
    counts = _received(torch.tensor(first.shape[0], device=first.device), size, group)
    num_rows: list[int] = torch.stack(counts).tolist()
    most = max(num_rows)
    if most == 0:
        return dict(rows)
    gathered = {}
    for name, own in rows.items():
        # Every rank sends as many rows as the one that has most.
        sent = own.new_zeros((most, *own.shape[1:]))
        sent[: own.shape[0]] = own.detach()
        received = _received(sent, size, group)
        parts = [part[:count] for part, count in zip(received, num_rows, strict=True)]
        parts[own_place] = own
        gathered[name] = torch.cat(parts)
    return gathered


def _received(sent: Tensor, size: int, group: dist.ProcessGroup) -> list[Tensor]:
    received = [torch.empty_like(sent) for _ in range(size)]
    dist.all_gather(received, sent, group=group)
    return received
