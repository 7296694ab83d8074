"""What a strategy that shards weights may trade: memory for messages, the device's memory for the host's."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from framework.distributed.mesh import MeshShape
from framework.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How sharded weights and gradients travel and where they lie. It changes time and memory, no number but rounding.

    Gradients are reduced once a step by default: a model of 300 million parameters then keeps 1.2 GB of them on each
    rank, little beside its activations, while each reduction crosses the slowest link.

    Attributes:
        reshard_after_forward: What a layer's weights do between forward and backward: true: they are let go and
            gathered again; false: they stay gathered until the last backward of the step; a number: they stay gathered
            over that many neighbouring ranks, which the backward pass then gathers from.
        forward_prefetch: Layers whose weights are asked for ahead of the one that computes; null: none, each is asked
            for when the host comes to it.
        backward_prefetch: The same in the backward pass; null: one.
        cpu_offload: Weights, gradients and optimizer state lie in the host's memory, where the optimizer also runs;
            a layer's weights visit the device while it computes.
        gradient_sync: "last": gradients are reduced once a step, with the last micro-batch; until then each rank keeps
            whole ones (4 bytes a parameter of the model). "every": with each micro-batch; a rank keeps its shard only.
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
                raise ConfigError(f"`strategy.{name}` is {value}, but it must be at least 1; raise it, or give null.")

    def changed(self) -> dict[str, Any]:
        """The settings of this class that differ from their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(Sharding)}
        return {name: value for name, (value, default) in values.items() if value != default}


DEFAULT_SHARDING = Sharding()


def check_sharding(sharding: Sharding, shape: MeshShape) -> None:
    """Checks that the settings fit the mesh.

    Raises:
        ConfigError: `reshard_after_forward` is a number that does not divide the ranks of a shard group into equal
            parts of several ranks, or there is tensor parallel too.
    """
    size = sharding.reshard_after_forward
    if isinstance(size, bool):
        return
    if shape.tensor > 1:
        raise ConfigError(
            f"`strategy.reshard_after_forward` is {size}, but torch knows no partial groups with tensor parallel; use "
            "true or false."
        )
    fitting = [str(each) for each in range(2, shape.shard) if shape.shard % each == 0]
    if str(size) not in fitting:
        raise ConfigError(
            f"`strategy.reshard_after_forward` is {size}, but weights are sharded over {shape.shard} ranks; use "
            f"{', '.join(['true', 'false', *fitting])}."
        )
