"""Initial values: each parameter is a function of (seed, its name), so that any rank can make any of them alone."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from framework.nn.norm import LayerNorm
from framework.random import generator

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_ZERO = ("bias", ".lora_b")
_RESIDUAL_OUTPUTS = (".attention.output.weight", ".cross_attention.output.weight", ".feed_forward.down.weight")


def without_wrappers(name: str) -> str:
    """Returns a parameter's name without the parts that torch.compile and activation checkpointing insert."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


class InitializationSettings(Protocol):
    """What initial values need to know of a config."""

    @property
    def num_layers(self) -> int:
        """Transformer layers."""

    @property
    def initializer_range(self) -> float:
        """Standard deviation."""

    @property
    def output_initialization(self) -> str:
        """Of the maps that write to the residual stream: "normal", "scaled" or "zero"."""


def _normal(seed: int, name: str, shape: torch.Size, std: float) -> Tensor:
    values = generator(seed, "initial value", name).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values).mul_(std)


def _std(name: str, config: InitializationSettings) -> float:
    """Standard deviation of one weight matrix."""
    if not name.endswith(_RESIDUAL_OUTPUTS) or config.output_initialization == "normal":
        return config.initializer_range
    if config.output_initialization == "zero":
        return 0.0
    return config.initializer_range / math.sqrt(2 * config.num_layers)


def initial_values(
    model: nn.Module, config: InitializationSettings, seed: int
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Gives a maker of the initial value of each parameter; the model may be on the meta device or sharded.

    Weights of linear maps and embeddings are normal, biases and the B of low-rank updates 0, norm weights 1. A tied
    parameter comes once, under its first name.

    Args:
        model: Only its parameters' names and shapes and its modules' classes are read.
        config: Standard deviation and the rule for the residual outputs.
        seed: The run's seed.

    Yields:
        The name as in `model.named_parameters()`, and a function that makes the full value: fp32, on the CPU, depending
        on the seed and the name only (what torch.compile and activation checkpointing insert into names is left out).
    """
    norms = {id(module.weight) for module in model.modules() if isinstance(module, LayerNorm)}
    for name, parameter in model.named_parameters():
        plain_name = without_wrappers(name)
        maker: Callable[[], Tensor]
        if plain_name.endswith(_ZERO):
            maker = functools.partial(torch.zeros, parameter.shape)
        elif id(parameter) in norms:
            maker = functools.partial(torch.ones, parameter.shape)
        else:
            std = _std("." + plain_name, config)
            if std == 0.0:
                maker = functools.partial(torch.zeros, parameter.shape)
            else:
                maker = functools.partial(_normal, seed, plain_name, parameter.shape, std)
        yield name, maker
