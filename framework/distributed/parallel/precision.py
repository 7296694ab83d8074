"""Precision under every strategy: matrix products as configured; weights, norms, losses and reductions in fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from framework.distributed.parallel.loss_scale import LossScale
from framework.distributed.parallel.loss_scale_limits import GROWTH_INTERVAL, INITIAL_SCALE
from framework.errors import ConfigError

if TYPE_CHECKING:
    from framework.optim.combined import CombinedOptimizer

_COMPUTE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float8": torch.bfloat16,
}
PRECISIONS = (*_COMPUTE_DTYPES, "auto")

PRECISION_STRATEGIES = {"fp16": ("single", "ddp"), "float8": ("single", "ddp", "fsdp2", "hsdp")}
"""Strategies of the precisions that not every strategy supports.

Models that are large enough to be sharded should use the range of bf16. torchao's linear layers do not support tensor
parallel.
"""


@dataclass(frozen=True, slots=True)
class Precision:
    """Dtype of matrix products. Model weights and optimizer state are always fp32.

    Attributes:
        name: "fp32", "bf16", "fp16" or "float8". "float8" means bf16 with linear layers that compute in float8.
        init_scale: Loss scale of fp16 at the start of a run.
        growth_interval: Number of finite steps in a row after which the loss scale is doubled.
    """

    name: str
    init_scale: float = INITIAL_SCALE
    growth_interval: int = GROWTH_INTERVAL

    def __post_init__(self) -> None:
        if self.name not in _COMPUTE_DTYPES:
            raise ConfigError(f"precision={self.name} is unknown. Use one of {', '.join(PRECISIONS)}.")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of attention and of matrix products, except those in float8."""
        return _COMPUTE_DTYPES[self.name]

    def autocast(self, device_type: str) -> AbstractContextManager[object]:
        """Returns the context in which a forward pass runs, the same under every strategy.

        Autocast's cache of cast weights is off. With the cache, a second pass in one context would reuse casts that its
        recomputation under activation checkpointing misses, and would add its gradient to the first pass's gradient in
        half precision. A pass uses each weight once, so the cache would save nothing.
        """
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device_type, dtype=self.compute_dtype, cache_enabled=False)

    def build_loss_scale(self) -> LossScale | None:
        """Builds the loss scale of a run; None for precisions with the range of fp32."""
        return LossScale(self.init_scale, self.growth_interval) if self.name == "fp16" else None


def multiplies_bf16(device_type: str) -> bool:
    """Returns True if the hardware multiplies bf16 natively: CUDA from 8.0 on, CPUs with AMX or AVX-512 BF16."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(
    name: str, device_type: str, init_scale: float = INITIAL_SCALE, growth_interval: int = GROWTH_INTERVAL
) -> Precision:
    """Resolves the precision of the config. "auto" is bf16 if the hardware multiplies it natively, otherwise fp32.

    Args:
        name: One of `PRECISIONS`.
        device_type: "cpu" or "cuda".
        init_scale: Loss scale of fp16 at the start of a run.
        growth_interval: Number of finite steps in a row after which the loss scale is doubled.

    Raises:
        ConfigError: The name is unknown.
    """
    if name == "auto":
        name = "bf16" if multiplies_bf16(device_type) else "fp32"
    return Precision(name, init_scale, growth_interval)


def check_full_precision(model: nn.Module, optimizer: CombinedOptimizer) -> None:
    """Checks that weights and optimizer state are fp32, for any precision of products. Call it before the first step.

    Raises:
        ConfigError: A parameter, or a floating-point tensor of its state, has another dtype. The message names it.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"the parameter {name} is {_short(parameter.dtype)}. Weights must be fp32; `precision` sets only the "
                "dtype of matrix products. Build the module without a dtype."
            )
    for name, value in optimizer.named_state().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ConfigError(
                f"the optimizer state {name} is {_short(value.dtype)}. It must be fp32 like the weights. Create it "
                "with torch.zeros_like(parameter)."
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
