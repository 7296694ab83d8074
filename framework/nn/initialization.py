"""Initial values: each parameter is a function of (seed, name), so any rank can compute any parameter by itself."""

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
    """Settings of a config that decide initial values."""

    @property
    def num_layers(self) -> int:
        """Number of Transformer layers."""

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the weights."""

    @property
    def output_initialization(self) -> str:
        """Rule for linear layers that write to the residual stream: "normal", "scaled" or "zero"."""


def _normal(seed: int, name: str, shape: torch.Size, std: float) -> Tensor:
    values = generator(seed, "initial value", name).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values).mul_(std)


def _std(name: str, config: InitializationSettings) -> float:
    """Returns the standard deviation of one weight matrix."""
    if not name.endswith(_RESIDUAL_OUTPUTS) or config.output_initialization == "normal":
        return config.initializer_range
    if config.output_initialization == "zero":
        return 0.0
    return config.initializer_range / math.sqrt(2 * config.num_layers)


def initial_values(
    model: nn.Module, config: InitializationSettings, seed: int
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yields a function that computes the initial value of each parameter.

    The model may be on the meta device or sharded. Weights of linear layers and embeddings are normal, biases and the B
    of low-rank updates are 0, norm weights are 1. A tied parameter appears once, under its first name.

    Args:
        model: Model, of which only parameter names, shapes and module classes are read.
        config: Standard deviation and the rule for residual outputs.
        seed: Seed of the run.

    Yields:
        Name as in `model.named_parameters()`, and a function that returns the full value: fp32, on the CPU, a function
        of the seed and of the name without wrappers.
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
