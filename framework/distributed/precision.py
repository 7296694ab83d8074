"""One rule of precision under every strategy: weights fp32, products bf16; norms, losses and reductions fp32."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from framework.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "auto")


@dataclass(frozen=True, slots=True)
class Precision:
    """How products are computed. The model's weights and the optimizer's state are fp32 in each case.

    Attributes:
        name: "fp32" or "bf16".
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in ("fp32", "bf16"):
            raise ConfigError(f"precision={self.name} is unknown; use one of {', '.join(PRECISIONS)}.")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of matrix products and attention."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def autocast(self, device_type: str) -> AbstractContextManager[object]:
        """The context in which a forward pass runs, on every strategy alike."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device_type, dtype=torch.bfloat16)

    @property
    def weight_policy(self) -> MixedPrecisionPolicy:
        """Policy of the groups that hold matrices: gathered in the compute dtype, gradients reduced in fp32.

        Inputs are not cast at module borders; autocast decides by operation, as in a single process.
        """
        if self.name == "fp32":
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)

    @property
    def norm_policy(self) -> MixedPrecisionPolicy:
        """Policy of the group that holds the norms: fp32 throughout."""
        return MixedPrecisionPolicy(cast_forward_inputs=False)


def multiplies_bf16(device_type: str) -> bool:
    """Says whether this hardware multiplies bf16 natively: CUDA from 8.0 on, CPUs with AMX or AVX-512 BF16."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(name: str, device_type: str) -> Precision:
    """Turns the config's precision into one that runs; "auto" takes bf16 where the hardware multiplies it natively.

    Raises:
        ConfigError: The name is unknown.
    """
    if name == "auto":
        return Precision("bf16" if multiplies_bf16(device_type) else "fp32")
    return Precision(name)
