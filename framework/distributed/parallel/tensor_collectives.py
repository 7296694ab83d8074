"""The two collectives of tensor parallel that have gradients (Shoeybi et al. 2019, "Megatron-LM", section 3: f and g).

Each is the other's backward pass. Both add up in fp32 whatever comes in, like all reductions. They do not write into
their inputs and know a group by its name, so that a compiler and activation checkpointing can look through them.
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
    """Marks where ranks begin to do different things with what is equal on all of them.

    Collective in the backward pass, which adds the ranks' gradients up; the forward pass does nothing.
    """
    return _ShareInput.apply(x, group_name)


def sum_of_parts(x: Tensor, group_name: str) -> Tensor:
    """Adds up what each rank made, so that all have the sum, in fp32. Collective in the forward pass only."""
    return _SumOfParts.apply(x, group_name)


def gather_parts(x: Tensor, num_ranks: int, group_name: str) -> Tensor:
    """Puts what each rank has next to each other: (...) to (ranks, ...). Collective; without a gradient."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), num_ranks, group_name)
    return torch.ops._c10d_functional.wait_tensor(gathered).view(num_ranks, *x.shape)
