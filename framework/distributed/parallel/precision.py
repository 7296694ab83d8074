"""One rule of precision under every strategy: weights fp32, products as asked; norms, losses and reductions fp32."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from framework.distributed.parallel.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, LossScale
from framework.errors import ConfigError
from framework.optim.combined import CombinedOptimizer

_COMPUTE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float8": torch.bfloat16,
}
PRECISIONS = (*_COMPUTE_DTYPES, "auto")

PRECISION_STRATEGIES = {"fp16": ("single", "ddp"), "float8": ("single", "ddp", "fsdp2", "hsdp")}
"""Precisions that not every strategy has: what is large enough to be sharded should have bf16's range, and torchao's
maps are no tensor parallel ones."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How products are computed. The model's weights and the optimizer's state are fp32 in each case.

    Attributes:
        name: "fp32", "bf16", "fp16", or "float8": bf16 around linear maps that compute in float8.
        init_scale: Loss scale of fp16 at the start of a run.
        growth_interval: Finite steps in a row after which the loss scale is doubled.
    """

    name: str
    init_scale: float = INITIAL_SCALE
    growth_interval: int = GROWTH_INTERVAL

    def __post_init__(self) -> None:
        if self.name not in _COMPUTE_DTYPES:
            raise ConfigError(f"precision={self.name} is unknown; use one of {', '.join(PRECISIONS)}.")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of matrix products (but those in float8) and attention."""
        return _COMPUTE_DTYPES[self.name]

    def autocast(self, device_type: str) -> AbstractContextManager[object]:
        """The context in which a forward pass runs, on every strategy alike.

        Autocast's cache of cast weights is off: within one context a second pass would find casts that its
        recomputation under activation checkpointing misses, and would add its gradient to the first one's in half
        precision. A pass uses each weight once, so that there is nothing to be saved.
        """
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device_type, dtype=self.compute_dtype, cache_enabled=False)

    def build_loss_scale(self) -> LossScale | None:
        """The scale that losses of a run need; None where the range of the numbers is that of fp32."""
        return LossScale(self.init_scale, self.growth_interval) if self.name == "fp16" else None

    @property
    def weight_policy(self) -> MixedPrecisionPolicy:
        """Policy of the groups that hold matrices: gathered in the compute dtype, gradients reduced in fp32.

        Inputs are not cast at module borders; autocast decides by operation, as in a single process.
        """
        if self.name == "fp32":
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(
            param_dtype=self.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )

    @property
    def norm_policy(self) -> MixedPrecisionPolicy:
        """Policy of the group that holds the norms: fp32 throughout."""
        return MixedPrecisionPolicy(cast_forward_inputs=False)


def multiplies_bf16(device_type: str) -> bool:
    """Says whether this hardware multiplies bf16 natively: CUDA from 8.0 on, CPUs with AMX or AVX-512 BF16."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(
    name: str, device_type: str, init_scale: float = INITIAL_SCALE, growth_interval: int = GROWTH_INTERVAL
) -> Precision:
    """Turns the config's precision into one that runs; "auto" takes bf16 where the hardware multiplies it natively.

    Args:
        name: One of `PRECISIONS`.
        device_type: "cpu" or "cuda".
        init_scale: Loss scale of fp16 at the start of a run.
        growth_interval: Finite steps in a row after which the loss scale is doubled.

    Raises:
        ConfigError: The name is unknown.
    """
    if name == "auto":
        name = "bf16" if multiplies_bf16(device_type) else "fp32"
    return Precision(name, init_scale, growth_interval)


def check_full_precision(model: nn.Module, optimizer: CombinedOptimizer) -> None:
    """Weights and optimizer state must be fp32, whatever products are made of; call before the first step.

    Raises:
        ConfigError: A parameter, or a floating part of its state, is of another dtype; the message names it.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"the parameter {name} is {_short(parameter.dtype)}, but weights are kept in fp32 and `precision` says "
                "what products are made of; build the module without a dtype."
            )
    for name, value in optimizer.named_state().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ConfigError(
                f"the optimizer state {name} is {_short(value.dtype)}, but it is kept in fp32 as the weights are; "
                "create it with torch.zeros_like(parameter)."
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
