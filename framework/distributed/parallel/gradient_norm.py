"""The global norm of the gradients, exact under every strategy, and clipping by it."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.optim.shards import local


def _num_parts(tensor: Tensor) -> int:
    """Over how many ranks a tensor is sharded; 1 where each rank holds all of it."""
    if not isinstance(tensor, DTensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    # Not `is_shard()`: it says False of the strided shards of two axes on one dim (torch 2.13).
    return math.prod(size for size, placement in sizes if not placement.is_replicate())


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """Adds the squares of all elements, in fp64 beyond a row, so that it does not show which rank holds which part.

    On the CPU torch's norm of a whole tensor adds up in fp32: of 30,522 x 256 elements it loses 3e-5. A row's loses
    nothing.
    """
    if tensors[0].device.type == "cpu":
        norms = torch.cat([torch.linalg.vector_norm(tensor, dim=-1).flatten() for tensor in tensors])
    else:
        norms = torch.stack(torch._foreach_norm(tensors))
    return norms.double().square().sum()


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scales the gradients so that their global 2-norm is at most max_norm. Collective: all ranks must call.

    The norm is that of the whole model's gradient: shards count once, replicas count once, a tied parameter counts
    once. One all-reduce where parameters are sharded, none otherwise, and the host does not wait for the device unless
    gradients are offloaded to it.

    Args:
        parameters: The model's parameters; those without a gradient are left out.
        max_norm: None only measures.

    Returns:
        The norm before clipping, an fp32 scalar on the gradients' device.
    """
    unique = {id(parameter): parameter for parameter in parameters}
    gradients = [parameter.grad for parameter in unique.values() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    device = local(gradients[0]).device
    by_num_parts: dict[int, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_num_parts[_num_parts(gradient)].append(local(gradient))
    squares = {num_parts: _sum_of_squares(tensors) for num_parts, tensors in by_num_parts.items()}
    if max(squares) == 1:
        total = squares[1]
    else:
        # Each of several copies brings its share, so that one sum over all ranks does for every axis of the mesh.
        shares = [value * num_parts / dist.get_world_size() for num_parts, value in squares.items()]
        mesh = next(gradient.device_mesh for gradient in gradients if isinstance(gradient, DTensor))
        total = torch.stack(shares).sum().to(mesh.device_type)  # NCCL adds up nothing on the host
        dist.all_reduce(total)
        total = total.to(device)
    norm = total.sqrt().float()
    if max_norm is not None:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
    return norm
