"""Device mesh of a strategy: the number of ranks along each axis, and the ranks that read the same data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError

StrategyName = Literal["single", "ddp", "fsdp2", "hsdp", "tp", "fsdp2_tp"]

STRATEGIES: tuple[StrategyName, ...] = ("single", "ddp", "fsdp2", "hsdp", "tp", "fsdp2_tp")

SHARDED: tuple[StrategyName, ...] = ("fsdp2", "hsdp", "fsdp2_tp")
"""Strategies that shard weights. The settings of `framework.distributed.parallel.sharding` apply to these."""

REPLICATE, SHARD, TENSOR = "dp_replicate", "dp_shard", "tp"
"""Mesh axes, outermost first: copies of the weights, shards of the weights, shards of each matrix product."""


@dataclass(frozen=True, slots=True)
class MeshShape:
    """Number of ranks along each mesh axis. Ranks along the innermost axis, tensor parallel, are consecutive.

    Attributes:
        replicate: Number of copies of the weights. Averaged gradients keep the copies equal.
        shard: Number of parts into which weights, gradients and optimizer state are split.
        tensor: Number of parts into which each matrix product is split. The ranks of one product read the same data.
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    @property
    def data_parallel_size(self) -> int:
        """Number of ranks that read different data."""
        return self.replicate * self.shard

    def data_parallel_rank(self, rank: int) -> int:
        """Returns the index of a rank among the ranks that read different data."""
        return rank // self.tensor


def mesh_shape(
    strategy: str, world_size: int, replicate_size: int | None = None, tensor_parallel_size: int | None = None
) -> MeshShape:
    """Computes the mesh shape of a strategy.

    Args:
        strategy: One of STRATEGIES.
        world_size: Number of processes on all hosts.
        replicate_size: Number of copies of the weights, for `hsdp`. None: one copy per host (torchrun agent). A single
            copy is the same as `fsdp2`.
        tensor_parallel_size: Number of ranks that share each matrix product, for `tp` and `fsdp2_tp`. None: all ranks.

    Raises:
        ConfigError: The name is unknown, `single` was started in several processes, or a size does not fit the strategy
            or the number of processes.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy={strategy} is unknown. Use one of {', '.join(STRATEGIES)}.")
    if strategy == "single" and world_size > 1:
        raise ConfigError(
            f"strategy=single cannot run in {world_size} processes. It uses one process. Use strategy=ddp or "
            "strategy=fsdp2, or start one process."
        )
    for key, size, strategies in (
        ("replicate_size", replicate_size, ("hsdp",)),
        ("tensor_parallel_size", tensor_parallel_size, ("fsdp2_tp", "tp")),
    ):
        if size is not None and strategy not in strategies:
            raise ConfigError(
                f"`strategy.{key}` is {size}, but strategy={strategy} does not use it. Set it to null, or use "
                f"strategy={strategies[0]}."
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


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number in ascending order."""
    return [each for each in range(1, number + 1) if number % each == 0]


def nearest(size: int, choices: Sequence[int]) -> int:
    """Returns the choice with the smallest difference from a size, the first of two that are equally close."""
    return min(choices, key=lambda choice: abs(choice - size))


def _check_tensor_parallel_size(strategy: str, size: int, world_size: int) -> None:
    if size < 1 or world_size % size:
        fitting = divisors(world_size)
        raise ConfigError(
            f"strategy.tensor_parallel_size is {size}. It must divide the number of processes, which is {world_size}. "
            f"The nearest is strategy.tensor_parallel_size={nearest(size, fitting)}, of {', '.join(map(str, fitting))}."
        )
    if strategy == "tp" and size != world_size:
        raise ConfigError(
            f"strategy.tensor_parallel_size is {size}. With strategy=tp all {world_size} processes share every matrix "
            "product. Use strategy=fsdp2_tp, or set strategy.tensor_parallel_size to null."
        )


def _check_replicate_size(copies: int, given: int | None, world_size: int) -> None:
    origin = "null, which means one copy per host, here " if given is None else ""
    setting = f"`strategy.replicate_size` is {origin}{copies}"
    fitting = divisors(world_size)[:-1] or [1]
    remedy = f"strategy.replicate_size={nearest(copies, fitting)}"
    if copies < 1 or world_size % copies:
        raise ConfigError(
            f"{setting}. It must divide the number of processes, which is {world_size}. The nearest is {remedy}, of "
            f"{', '.join(map(str, fitting))}."
        )
    if copies == world_size > 1:
        raise ConfigError(
            f"{setting}, so each of the {world_size} processes holds a whole copy and no weights are sharded. "
            f"strategy=hsdp needs fewer copies than processes. Set {remedy}, or use strategy=ddp."
        )


def build_mesh(strategy: str, shape: MeshShape, device_type: str) -> DeviceMesh | None:
    """Builds the device mesh of a strategy; None for `single`. Collective: all ranks must call.

    An axis of size 1 is omitted, because it would cost one more collective per group of parameters.
    """
    if strategy == "single":
        return None
    sizes = {REPLICATE: shape.replicate, SHARD: shape.shard, TENSOR: shape.tensor}
    axes = [name for name, size in sizes.items() if size > 1] or [REPLICATE if strategy == "ddp" else SHARD]
    return init_device_mesh(device_type, tuple(sizes[name] for name in axes), mesh_dim_names=tuple(axes))


def data_parallel_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Returns the submesh of the ranks that read different data; None if all ranks read the same data."""
    names = () if mesh is None or mesh.mesh_dim_names is None else mesh.mesh_dim_names
    axes = tuple(name for name in names if name != TENSOR)
    return mesh[axes] if mesh is not None and axes else None


def data_parallel_size(mesh: DeviceMesh | None) -> int:
    """Returns the number of ranks that read different data."""
    data_parallel = data_parallel_mesh(mesh)
    return 1 if data_parallel is None else data_parallel.size()


def data_parallel_groups(mesh: DeviceMesh | None) -> list[dist.ProcessGroup]:
    """Returns the process groups of the axes that read different data.

    One all-reduce per group, in sequence, sums a tensor over all ranks that read different data.
    """
    data_parallel = data_parallel_mesh(mesh)
    if data_parallel is None or data_parallel.size() == 1:
        return []
    if data_parallel.size() == dist.get_world_size():
        return [dist.group.WORLD]  # type: ignore[list-item]
    return data_parallel.get_all_groups()
