"""Local parts of parameters that may be sharded, and sums over them."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    """Returns True for a DTensor. It does not import DTensor, because that takes almost a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this rank holds, sharing memory; a plain tensor is returned as it is."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def first_element(tensor: Tensor) -> int:
    """Returns the position of a local part's first element in the flattened full tensor; 0 for a plain tensor.

    Shards on the first dim are contiguous. A shard on another dim is not supported.
    """
    if not is_distributed(tensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(shape) == tuple(tensor.to_local().shape)
    assert not any(offset[1:])
    return int(offset[0]) * math.prod(tensor.shape[1:]) if offset and shape[0] else 0


def computing_device(parameter: Tensor) -> torch.device:
    """Returns the device of a parameter's mesh, also if the parameter is offloaded to the host."""
    return torch.device(parameter.device_mesh.device_type) if is_distributed(parameter) else parameter.device


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Returns the sum of squares of a plain tensor as an fp64 scalar.

    Rows are summed in fp32 and their sums in fp64, so that the result does not depend on the sharding. On the CPU torch
    sums a whole tensor in fp32 and loses 1e-3 for 30,522 x 384 elements; summing everything in fp64 takes 70 times
    longer.
    """
    return torch.linalg.vector_norm(tensor, dim=-1).double().square().sum()


def sum_over_shards(sums: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Adds the sums over local parts to sums over whole parameters. Collective: all ranks must call.

    There is one all-reduce for all parameters on each mesh axis that shards any of them. Replicas count once.

    Args:
        sums: (quantities, parameters) on the parameters' device (the host if they are offloaded).
        parameters: Plain tensors, which each rank holds in full, or DTensors.

    Returns:
        Tensor of the same shape, equal on all ranks that hold a part of the parameter.
    """
    sharded: dict[tuple[dist.ProcessGroup, str], list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        if is_distributed(parameter):
            for axis, placement in enumerate(parameter.placements):
                # Not `is_shard()`: it returns False for strided shards of two axes on one dim (torch 2.13).
                if not placement.is_replicate():
                    mesh = parameter.device_mesh
                    sharded[mesh.get_group(axis), mesh.device_type].append(index)
    for (group, device_type), indices in sharded.items():
        all_of_them = len(indices) == len(parameters)
        part = (sums if all_of_them else sums[:, indices]).to(device_type)  # NCCL cannot reduce host tensors
        dist.all_reduce(part, group=group)
        if all_of_them:
            sums = part.to(sums.device)
        else:
            sums[:, indices] = part.to(sums.device)
    return sums
