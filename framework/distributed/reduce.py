"""Sums over the ranks that read different data, and maxima over all ranks.

Without a process group each function returns its input unchanged.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.distributed.mesh import data_parallel_groups


def sum_over_data_ranks(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Sums a tensor over the ranks that read different data, in place. Collective: all ranks must call.

    Args:
        tensor: Summand of this rank; equal on ranks that read the same data.
        mesh: Device mesh of the strategy; None for a single process.
    """
    for group in data_parallel_groups(mesh):
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Computes the element-wise maximum over all ranks, in place. Collective: all ranks must call."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Returns True if the flag is True on any rank. Collective: all ranks must call. The host waits for the device."""
    return bool(max_over_ranks(torch.tensor(int(flag), device=device)).item())


def barrier() -> None:
    """Waits until all ranks have called it. Collective: all ranks must call."""
    if dist.is_initialized():
        dist.barrier()
