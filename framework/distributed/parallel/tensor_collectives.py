"""Collectives of tensor parallel with gradients (Shoeybi et al. 2019, "Megatron-LM", section 3: f and g).

The backward pass of each is the forward pass of the other. Both sum in fp32 for any input dtype, like all reductions.
They do not modify their inputs and identify a group by its name, so that a compiler and activation checkpointing can
trace them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _all_reduce(x: Tensor, group_name: str) -> Tensor:
    total = torch.ops._c10d_functional.all_reduce(x.float().contiguous(), "sum", group_name)
    return torch.ops._c10d_functional.wait_tensor(total)


class _ShareInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.group_name).to(grad.dtype), None


class _SumOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        ctx.dtype = x.dtype
        return _all_reduce(x, group_name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def share_input(x: Tensor, group_name: str) -> Tensor:
    """Passes on a tensor that is equal on all ranks, before the ranks compute different parts with it.

    The backward pass sums the gradients of all ranks and is collective. The forward pass does not communicate.
    """
    return _ShareInput.apply(x, group_name)


def sum_of_parts(x: Tensor, group_name: str) -> Tensor:
    """Sums a tensor over the ranks, in fp32, and returns the sum on all ranks. Collective in the forward pass only."""
    return _SumOfParts.apply(x, group_name)


def gather_parts(x: Tensor, num_ranks: int, group_name: str) -> Tensor:
    """Stacks the tensors of all ranks: (...) to (ranks, ...). Collective: all ranks must call. It has no gradient."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), num_ranks, group_name)
    return torch.ops._c10d_functional.wait_tensor(gathered).view(num_ranks, *x.shape)
