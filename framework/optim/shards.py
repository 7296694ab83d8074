"""What an optimizer needs to know of a parameter that may be sharded."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a plain tensor is held whole. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def computing_device(parameter: Tensor) -> torch.device:
    """The device of a parameter's mesh, where its parts meet, also while they lie offloaded on the host."""
    return torch.device(parameter.device_mesh.device_type) if isinstance(parameter, DTensor) else parameter.device


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Of all elements of a plain tensor, an fp64 scalar.

    In fp64 beyond a row, so that it does not show which rank holds which part: on the CPU torch adds up a whole tensor
    in fp32, and of 30,522 x 384 elements it loses 1e-3. Adding all in fp64 takes 70 times longer there.
    """
    return torch.linalg.vector_norm(tensor, dim=-1).double().square().sum()


def sum_over_shards(sums: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Makes sums over whole parameters of the sums that each rank made over its parts. Collective: all ranks must call.

    One all-reduce for all parameters together on each mesh axis that shards any of them; replicas count once.

    Args:
        sums: (quantities, parameters), on the parameters' device (the host, where they are offloaded).
        parameters: Plain tensors, which each rank holds whole, or DTensors.

    Returns:
        The same shape, the same on every rank that holds a part of the parameter.
    """
    sharded: dict[tuple[dist.ProcessGroup, str], list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            for axis, placement in enumerate(parameter.placements):
                # Not `is_shard()`: it says False of the strided shards of two axes on one dim (torch 2.13).
                if not placement.is_replicate():
                    mesh = parameter.device_mesh
                    sharded[mesh.get_group(axis), mesh.device_type].append(index)
    for (group, device_type), indices in sharded.items():
        all_of_them = len(indices) == len(parameters)
        part = (sums if all_of_them else sums[:, indices]).to(device_type)  # NCCL adds up nothing on the host
        dist.all_reduce(part, group=group)
        if all_of_them:
            sums = part.to(sums.device)
        else:
            sums[:, indices] = part.to(sums.device)
    return sums
