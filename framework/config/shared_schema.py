"""Settings that `framework.train` shares with other commands, and checks of bounds.

Imports no torch: commands without a model start quickly.
"""

from dataclasses import dataclass
from typing import Any, Literal

from framework.distributed.parallel.loss_scale_limits import (
    GROWTH_INTERVAL,
    INITIAL_SCALE,
    LARGEST_SCALE,
    SMALLEST_SCALE,
)
from framework.errors import ConfigError

_LARGEST = 10**15
"""Largest accepted count, more than any run needs. Python rejects lengths of 2**63 and more."""


def at_least(group: str, node: Any, minimum: float, *names: str) -> None:
    """Checks bounds of attributes; None is allowed.

    Args:
        group: Config group, for messages.
        node: Settings of the group.
        minimum: Smallest allowed value.
        names: Names of the attributes.

    Raises:
        ConfigError: A value is below the minimum or above 10^15.
    """
    for name in names:
        value = getattr(node, name)
        if value is not None and value > _LARGEST:
            raise ConfigError(f"`{group}.{name}` is {value}. It must be at most {_LARGEST:,}. Lower it.")
        if value is not None and value < minimum:
            raise ConfigError(f"`{group}.{name}` is {value}. It must be at least {minimum}. Raise it.")


def check_average_last(name: str, value: int) -> None:
    """Checks the number of checkpoints whose weights are averaged.

    Raises:
        ConfigError: The number is below 1.
    """
    if value < 1:
        raise ConfigError(f"`{name}` is {value}. It must be at least 1. Set 1 to average no checkpoints.")


@dataclass(frozen=True)
class PrecisionConfig:
    """Number format of matrix products.

    Attributes:
        name: "fp32"; "bf16" or "fp16" for matrix products; "auto": bf16 if the hardware multiplies it natively, else
            fp32; "float8" for the linear layers, bf16 for the rest (CUDA with torchao, training only).
        init_scale: Factor of the loss in fp16 at the start of a run. It keeps small gradients from becoming zero.
        growth_interval: Number of steps without an overflow after which the scale is doubled.
    """

    name: Literal["fp32", "bf16", "fp16", "auto", "float8"]
    init_scale: float = INITIAL_SCALE
    growth_interval: int = GROWTH_INTERVAL

    def __post_init__(self) -> None:
        at_least("precision", self, 1, "growth_interval")
        if not SMALLEST_SCALE <= self.init_scale <= LARGEST_SCALE:
            raise ConfigError(
                f"`precision.init_scale` is {self.init_scale}. It must be between 1 and 2^127, the largest power of "
                "two in fp32. A usual value is 65536."
            )
