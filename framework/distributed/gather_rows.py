"""Gathers rows from all ranks that read different data onto each of these ranks."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.distributed.mesh import data_parallel_groups


def gather_rows(rows: Mapping[str, Tensor], mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Concatenates the rows of all ranks. Collective: all ranks must call. The host waits for the device.

    Tensor parallel ranks hold the same rows, so the result contains these rows once. Gradients flow only to the rank's
    own rows, without a collective. Use the function for losses that every rank computes over all rows.

    Args:
        rows: Tensors by name, (rows, ...) each. All tensors of a rank have the same number of rows, which may differ
            from rank to rank. Names, dtypes and further dims are the same on all ranks.
        mesh: Device mesh of the strategy; None for a single process.

    Returns:
        Tensors by name, each with the rows of all ranks.
    """
    gathered = dict(rows)
    for group in data_parallel_groups(mesh):
        gathered = _gather_over(gathered, group)
    return gathered


def _gather_over(rows: Mapping[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    size, own_index = dist.get_world_size(group), dist.get_rank(group)
    first = next(iter(rows.values()))
    counts = _all_gather(torch.tensor(first.shape[0], device=first.device), size, group)
    num_rows: list[int] = torch.stack(counts).tolist()
    most = max(num_rows)
    if most == 0:
        return dict(rows)
    gathered = {}
    for name, own in rows.items():
        # `all_gather` needs equal shapes: each rank pads its rows to the largest count.
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: own.shape[0]] = own.detach()
        received = _all_gather(padded, size, group)
        parts = [part[:count] for part, count in zip(received, num_rows, strict=True)]
        parts[own_index] = own
        gathered[name] = torch.cat(parts)
    return gathered


def _all_gather(sent: Tensor, size: int, group: dist.ProcessGroup) -> list[Tensor]:
    received = [torch.empty_like(sent) for _ in range(size)]
    dist.all_gather(received, sent, group=group)
    return received
