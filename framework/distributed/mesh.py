"""The device mesh of a strategy: how many ranks lie along which axis, and which of them read the same data."""

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError

StrategyName = Literal["single", "ddp", "fsdp2", "hsdp", "tp", "fsdp2_tp"]

STRATEGIES: tuple[StrategyName, ...] = ("single", "ddp", "fsdp2", "hsdp", "tp", "fsdp2_tp")

SHARDED: tuple[StrategyName, ...] = ("fsdp2", "hsdp", "fsdp2_tp")
"""Strategies that shard weights, to which the settings of `framework.distributed.parallel.sharding` apply."""

REPLICATE, SHARD, TENSOR = "dp_replicate", "dp_shard", "tp"
"""Axes of a mesh, outermost first: whole copies; shards of the weights; shards of each matrix product."""


@dataclass(frozen=True, slots=True)
class MeshShape:
    """How many ranks lie along each axis. Ranks along the innermost axis, that of tensor parallel, are neighbours.

    Attributes:
        replicate: Copies of the weights that are kept equal by averaging gradients.
        shard: Parts into which weights, gradients and optimizer state are split.
        tensor: Parts into which each matrix product is split; such ranks read the same data.
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    @property
    def data_parallel_size(self) -> int:
        """How many ranks read different data."""
        return self.replicate * self.shard

    def data_parallel_rank(self, rank: int) -> int:
        """The place of a rank among those that read different data."""
        return rank // self.tensor


def mesh_shape(
    strategy: str, world_size: int, replicate_size: int | None = None, tensor_parallel_size: int | None = None
) -> MeshShape:
    """Lays the ranks of a strategy out.

    Args:
        strategy: One of STRATEGIES.
        world_size: Processes in all.
        replicate_size: Copies of the weights, for `hsdp`; None: one a host, as many as torchrun was started on. A
            single copy is `fsdp2`.
        tensor_parallel_size: Ranks that share each matrix product, for `tp` and `fsdp2_tp`; None: all.

    Raises:
        ConfigError: The name is unknown, `single` was started in several processes, or a size does not fit the strategy
            or the number of processes.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy={strategy} is unknown; use one of {', '.join(STRATEGIES)}.")
    if strategy == "single" and world_size > 1:
        raise ConfigError(
            f"strategy=single runs one process, but there are {world_size}. Use strategy=ddp or strategy=fsdp2, or "
            "start one process."
        )
    for key, size, meant_for in (
        ("replicate_size", replicate_size, ("hsdp",)),
        ("tensor_parallel_size", tensor_parallel_size, ("fsdp2_tp", "tp")),
    ):
        if size is not None and strategy not in meant_for:
            raise ConfigError(
                f"`strategy.{key}` is {size}, but strategy {strategy} has no such choice; use strategy={meant_for[0]}, "
                "or set it to null."
            )
    if strategy in ("tp", "fsdp2_tp"):
        tensor = world_size if tensor_parallel_size is None else tensor_parallel_size
        _check_tensor_parallel_size(strategy, tensor, world_size)
        return MeshShape(shard=world_size // tensor, tensor=tensor)
    if strategy == "hsdp":
        copies = process_info().num_nodes if replicate_size is None else replicate_size
        _check_replicate_size(copies, replicate_size, world_size)
        return MeshShape(replicate=copies, shard=world_size // copies)
    return MeshShape(replicate=world_size) if strategy == "ddp" else MeshShape(shard=world_size)


def _check_tensor_parallel_size(strategy: str, size: int, world_size: int) -> None:
    if size < 1 or world_size % size:
        divisors = ", ".join(str(divisor) for divisor in range(1, world_size + 1) if world_size % divisor == 0)
        raise ConfigError(
            f"strategy.tensor_parallel_size={size} must divide the number of processes, which is {world_size}; "
            f"use one of {divisors}."
        )
    if strategy == "tp" and size != world_size:
        raise ConfigError(
            f"strategy=tp shares every matrix product among all {world_size} processes, but "
            f"strategy.tensor_parallel_size={size}; use strategy=fsdp2_tp, or set it to null."
        )


def _check_replicate_size(copies: int, given: int | None, world_size: int) -> None:
    which = f"`strategy.replicate_size` is {'null, one copy a host, hence ' if given is None else ''}{copies}"
    if copies < 1 or world_size % copies:
        divisors = [str(each) for each in range(1, world_size) if world_size % each == 0] or ["1"]
        raise ConfigError(
            f"{which}, but it must divide the number of processes, which is {world_size}; use one of "
            f"{', '.join(divisors)}."
        )
    if copies == world_size > 1:
        raise ConfigError(
            f"{which}, a whole copy on each of {world_size} processes, and nothing is sharded; lower "
            "`strategy.replicate_size`, or use strategy=ddp."
        )


def build_mesh(strategy: str, shape: MeshShape, device_type: str) -> DeviceMesh | None:
    """Builds the mesh of a strategy; `single` has none. Collective: all ranks must call.

    An axis of one rank is left out: it would cost each group of parameters one collective more.
    """
    if strategy == "single":
        return None
    sizes = {REPLICATE: shape.replicate, SHARD: shape.shard, TENSOR: shape.tensor}
    axes = [name for name, size in sizes.items() if size > 1] or [REPLICATE if strategy == "ddp" else SHARD]
    return init_device_mesh(device_type, tuple(sizes[name] for name in axes), mesh_dim_names=tuple(axes))


def data_parallel_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """The axes over which data are spread; None where all ranks read the same."""
    names = () if mesh is None or mesh.mesh_dim_names is None else mesh.mesh_dim_names
    axes = tuple(name for name in names if name != TENSOR)
    return mesh[axes] if mesh is not None and axes else None


def data_parallel_size(mesh: DeviceMesh | None) -> int:
    """How many ranks read different data."""
    data_parallel = data_parallel_mesh(mesh)
    return 1 if data_parallel is None else data_parallel.size()


def data_parallel_groups(mesh: DeviceMesh | None) -> list[dist.ProcessGroup]:
    """The groups whose all-reduces, one after the other, add up over the ranks that read different data."""
    data_parallel = data_parallel_mesh(mesh)
    if data_parallel is None:
        return []
    if data_parallel.size() == dist.get_world_size():
        return [dist.group.WORLD]  # type: ignore[list-item]
    return data_parallel.get_all_groups()
