"""Sums over the ranks that read different data, and maxima over all; without a process group the tensor itself."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.distributed.mesh import data_parallel_groups


def sum_over_data_ranks(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Adds a tensor up over the ranks that read different data, in place. Collective: all ranks must call.

    Args:
        tensor: Of this rank; the same on ranks that read the same data.
        mesh: Of the strategy; None: a single process.
    """
    for group in data_parallel_groups(mesh):
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Takes the element-wise maximum over all ranks, in place. Collective: all ranks must call."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True if it is True on any rank. Collective: all ranks must call; waits for the device."""
    return bool(max_over_ranks(torch.tensor(int(flag), device=device)).item())


def barrier() -> None:
    """Waits for all ranks. Collective: all ranks must call."""
    if dist.is_initialized():
        dist.barrier()
