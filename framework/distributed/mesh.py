"""The device mesh of a strategy: how many ranks lie along which axis, and which of them read the same data."""

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from framework.errors import ConfigError

StrategyName = Literal["single", "ddp", "fsdp2"]

STRATEGIES: tuple[StrategyName, ...] = ("single", "ddp", "fsdp2")

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


def mesh_shape(strategy: str, world_size: int) -> MeshShape:
    """Lays the ranks of a strategy out.

    Raises:
        ConfigError: The name is unknown, or `single` was started in several processes.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy={strategy} is unknown; use one of {', '.join(STRATEGIES)}.")
    if strategy == "single" and world_size > 1:
        raise ConfigError(
            f"strategy=single runs one process, but torchrun started {world_size}; use strategy=ddp or strategy=fsdp2, "
            "or start without torchrun."
        )
    return MeshShape(replicate=world_size) if strategy == "ddp" else MeshShape(shard=world_size)


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
