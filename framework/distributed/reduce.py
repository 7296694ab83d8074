"""Sums and maxima over the data parallel ranks; without a process group they are the tensor itself."""

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Adds a tensor up over all ranks, in place. Collective: all ranks must call."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
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
