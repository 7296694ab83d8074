"""Settings of sharded strategies: they trade memory for communication, and device memory for host memory."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from framework.distributed.mesh import MeshShape
from framework.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Communication and memory settings of sharded weights and gradients. Results change only by rounding.

    By default gradients are reduced once per step. A model of 300 million parameters then keeps 1.2 GB of gradients on
    each rank, which is little compared with its activations, while each reduction crosses the slowest link.

    Attributes:
        reshard_after_forward: Handling of a layer's weights between forward and backward. True: they are freed and
            gathered again. False: they stay gathered until the last backward of the step. A number: they are
            sharded over groups of that many consecutive ranks, so that the backward pass gathers within a group.
        forward_prefetch: Number of layers whose weights are requested ahead of the layer that computes. None: the
            weights of each layer are requested when the host reaches it.
        backward_prefetch: The same number for the backward pass. None: one layer.
        cpu_offload: If True, weights, gradients and optimizer state stay in host memory, where the optimizer also
            runs. A layer's weights are copied to the device while it computes.
        gradient_sync: Micro-batches whose backward pass reduces gradients. "last": only the last of each step; until
            then each rank keeps whole gradients (4 bytes per parameter of the model). "every": each micro-batch, and a
            rank keeps only its shard.
    """

    reshard_after_forward: bool | int = True
    forward_prefetch: int | None = None
    backward_prefetch: int | None = None
    cpu_offload: bool = False
    gradient_sync: Literal["last", "every"] = "last"

    def __post_init__(self) -> None:
        for name in ("forward_prefetch", "backward_prefetch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`strategy.{name}` is {value}. It must be at least 1. Raise it, or set it to null.")

    def changed(self) -> dict[str, Any]:
        """Returns the settings of this class that differ from their defaults, by name."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(Sharding)}
        return {name: value for name, (value, default) in values.items() if value != default}


DEFAULT_SHARDING = Sharding()


def check_sharding(sharding: Sharding, shape: MeshShape) -> None:
    """Checks that the settings fit the mesh.

    Raises:
        ConfigError: `reshard_after_forward` is a number that does not divide the ranks of a shard group into equal
            parts of several ranks, or the mesh has tensor parallel too.
    """
    size = sharding.reshard_after_forward
    if isinstance(size, bool):
        return
    if shape.tensor > 1:
        raise ConfigError(
            f"`strategy.reshard_after_forward` is {size}. With tensor parallel torch supports no partial groups. Use "
            "true or false."
        )
    fitting = [str(each) for each in range(2, shape.shard) if shape.shard % each == 0]
    if str(size) not in fitting:
        raise ConfigError(
            f"`strategy.reshard_after_forward` is {size}. Weights are sharded over {shape.shard} ranks, and a number "
            f"must divide them into equal groups of several ranks. Use {', '.join(['true', 'false', *fitting])}."
        )
