"""The device mesh of a strategy: one axis of data parallel ranks, or no mesh at all."""

from typing import Literal

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from framework.errors import ConfigError

StrategyName = Literal["single", "ddp", "fsdp2"]

STRATEGIES: tuple[StrategyName, ...] = ("single", "ddp", "fsdp2")

_AXES = {"ddp": "dp_replicate", "fsdp2": "dp_shard"}


def check_strategy(name: str, world_size: int) -> None:
    """Says what is wrong with a strategy before anything is started.

    Raises:
        ConfigError: The name is unknown, or `single` was started in several processes.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name} is unknown; use one of {', '.join(STRATEGIES)}.")
    if name == "single" and world_size > 1:
        raise ConfigError(
            f"strategy=single runs one process, but torchrun started {world_size}; use strategy=ddp or strategy=fsdp2, "
            "or start without torchrun."
        )


def build_mesh(strategy: str, world_size: int, device_type: str) -> DeviceMesh | None:
    """Builds the one-dimensional mesh of `ddp` or `fsdp2`; `single` has none. Collective: all ranks must call.

    With one axis of sharding and none of replication each group pays one reduce-scatter and no all-reduce.
    """
    check_strategy(strategy, world_size)
    if strategy == "single":
        return None
    return init_device_mesh(device_type, (world_size,), mesh_dim_names=(_AXES[strategy],))


def data_parallel_rank(mesh: DeviceMesh | None) -> int:
    """This process's place among the ranks that read different data."""
    return 0 if mesh is None else mesh.get_local_rank()


def data_parallel_size(mesh: DeviceMesh | None) -> int:
    """How many ranks read different data."""
    return 1 if mesh is None else mesh.size()
