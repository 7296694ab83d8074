"""What Lightning's Trainer needs to know of a strategy: who this process is and where the mesh comes from.

The module parallelizes its model itself, in `configure_model`, with `trainer.strategy.mesh`; checkpoints, gradient sync
and clipping are not Lightning's either. So these classes only keep Lightning from doing those things.
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
    """One process, one device, no process group, no mesh."""

    name = "single"
    shape = MeshShape()
    mesh: DeviceMesh | None = None


class MeshStrategy(ModelParallelStrategy):
    """All others: one runtime, one mesh; the process group is started before the Trainer.

    Args:
        name: Any of `framework.distributed.mesh.STRATEGIES` but "single".
        shape: Of the mesh.
        timeout_seconds: Of collectives, should Lightning ever make a group.
    """

    def __init__(self, name: str, shape: MeshShape, timeout_seconds: float) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, timeout=timedelta(seconds=timeout_seconds))
        self.name = name
        self.shape = shape
        self.mesh: DeviceMesh | None = None

    def _configure_launcher(self) -> None:
        """Processes come from torchrun only."""

    def setup_environment(self) -> None:
        """Takes the existing process group and builds the mesh over it. Collective: all ranks must call.

        Raises:
            DistributedError: There is no process group.
        """
        if not dist.is_initialized():
            raise DistributedError(f"strategy={self.name} has no process group; enter `process_group` before fitting.")
        # Not the direct parent's: that one builds a mesh of its own over all local devices.
        super(ModelParallelStrategy, self).setup_environment()
        self.set_world_ranks()
        if self.mesh is None:
            self.mesh = build_mesh(self.name, self.shape, self.root_device.type)
        self._device_mesh = self.mesh

    def setup(self, trainer: Trainer) -> None:
        """Builds the optimizer and moves nothing: `configure_model` put each tensor where it belongs, host or device.

        Lightning's own (2.6.6) would bring offloaded weights and optimizer state to the device.
        """
        assert self.accelerator is not None and self.model is not None and self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.lightning_module._device = self.root_device  # as its `to` would
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Data parallel rank and size."""
        return {
            "num_replicas": self.shape.data_parallel_size,
            "rank": self.shape.data_parallel_rank(self.global_rank),
        }


def build_strategy(name: str, shape: MeshShape, timeout_seconds: float, device_type: str = "cpu") -> Strategy:
    """Builds the Lightning strategy of a name.

    Args:
        name: One of `framework.distributed.mesh.STRATEGIES`.
        shape: Of `framework.distributed.mesh.mesh_shape`.
        timeout_seconds: Of collectives.
        device_type: "cpu" or "cuda".
    """
    if name == "single":
        index = process_info().local_rank if device_type == "cuda" else None
        return SingleStrategy(torch.device(device_type) if index is None else torch.device(device_type, index))
    return MeshStrategy(name, shape, timeout_seconds)
