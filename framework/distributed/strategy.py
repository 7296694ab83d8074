"""Lightning strategies: they give the Trainer the rank of this process and the device mesh.

The Lightning module parallelizes its model itself, in `configure_model`, with `trainer.strategy.mesh`. Checkpoints,
gradient sync and clipping are not done by Lightning either, and these classes prevent it from doing any of them.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import DeviceMesh

from framework.distributed.mesh import MeshShape, build_mesh
from framework.distributed.processes.environment import process_info
from framework.errors import DistributedError


class SingleStrategy(SingleDeviceStrategy):
    """Strategy of one process on one device, without process group and mesh."""

    name = "single"
    shape = MeshShape()
    mesh: DeviceMesh | None = None


class MeshStrategy(ModelParallelStrategy):
    """Strategy for all names other than "single": one runtime with one mesh.

    The process group must exist before the Trainer starts.

    Args:
        name: One of `framework.distributed.mesh.STRATEGIES`, except "single".
        shape: Number of ranks along each mesh axis.
        timeout_seconds: Timeout of collectives, used only if Lightning creates a process group.
    """

    def __init__(self, name: str, shape: MeshShape, timeout_seconds: float) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, timeout=timedelta(seconds=timeout_seconds))
        self.name = name
        self.shape = shape
        self.mesh: DeviceMesh | None = None

    def _configure_launcher(self) -> None:
        """Does nothing: only torchrun starts processes."""

    def setup_environment(self) -> None:
        """Builds the mesh over the existing process group. Collective: all ranks must call.

        Raises:
            DistributedError: There is no process group.
        """
        if not dist.is_initialized():
            raise DistributedError(
                f"strategy={self.name} has no process group. The group must exist before the Trainer starts. Enter "
                "`process_group` before fitting."
            )
        # The method of ModelParallelStrategy is skipped: it builds its own mesh over all local devices.
        super(ModelParallelStrategy, self).setup_environment()
        self.set_world_ranks()
        if self.mesh is None:
            self.mesh = build_mesh(self.name, self.shape, self.root_device.type)
        self._device_mesh = self.mesh

    def setup(self, trainer: Trainer) -> None:
        """Builds the optimizer without moving tensors.

        `configure_model` has put each tensor on the host or on the device already. Lightning's own method (2.6.6) would
        move offloaded weights and optimizer state to the device.
        """
        assert self.accelerator is not None and self.model is not None and self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.lightning_module._device = self.root_device  # as `LightningModule.to` would set it
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Number of data parallel ranks and the index of this one, as arguments of a distributed sampler."""
        return {
            "num_replicas": self.shape.data_parallel_size,
            "rank": self.shape.data_parallel_rank(self.global_rank),
        }


def build_strategy(name: str, shape: MeshShape, timeout_seconds: float, device_type: str = "cpu") -> Strategy:
    """Builds the Lightning strategy for a strategy name.

    Args:
        name: One of `framework.distributed.mesh.STRATEGIES`.
        shape: Result of `framework.distributed.mesh.mesh_shape`.
        timeout_seconds: Timeout of collectives.
        device_type: "cpu" or "cuda".
    """
    if name == "single":
        index = process_info().local_rank if device_type == "cuda" else None
        return SingleStrategy(torch.device(device_type) if index is None else torch.device(device_type, index))
    return MeshStrategy(name, shape, timeout_seconds)
