"""Float8 computation of the linear layers in transformer layers with torchao, an optional extra for CUDA.

Inputs, weights and gradients are cast to float8 for each product, with one scale per tensor from its largest value
(Micikevicius et al. 2022, "FP8 Formats for Deep Learning"). The weights themselves stay fp32 and keep their names, so
checkpoints do not depend on float8.
"""

import importlib.util
from collections.abc import Iterable

import torch
from torch import nn

from framework.errors import ConfigError

_MIN_CAPABILITY = (8, 9)
_DIVISOR = 16
"""Divisor of matrix dimensions that the hardware requires. torchao pads the number of tokens."""


def check_float8(device_type: str) -> None:
    """Checks that this machine supports float8. The check is cheap; call it before any work.

    Raises:
        ConfigError: There is no CUDA device, it is older than 8.9 (Ada, Hopper), or torchao is not installed.
    """
    if device_type != "cuda":
        raise ConfigError(
            f"precision=float8 was set on the device type {device_type}. It needs CUDA. Use precision=bf16."
        )
    capability = torch.cuda.get_device_capability()
    if capability < _MIN_CAPABILITY:
        own, minimum = (".".join(map(str, version)) for version in (capability, _MIN_CAPABILITY))
        raise ConfigError(
            f"This device has CUDA compute capability {own}. precision=float8 needs {minimum} or newer. Use "
            "precision=bf16."
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "torchao is not installed. precision=float8 needs torchao. Install it with `pip install -e '.[float8]'`, "
            "or use precision=bf16."
        )


def apply_float8(layers: Iterable[nn.Module], emulate: bool = False) -> None:
    """Makes the linear layers inside transformer layers compute in float8, in place.

    Call it before layers are compiled or sharded. Parameters remain the same objects. A linear layer with a dimension
    that is not a multiple of 16 does not change.

    Args:
        layers: Transformer layers of encoder and decoder, without embeddings and output layers.
        emulate: If True, compute with casts and fp32 products, on any device. For tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    for layer in layers:
        convert_to_float8_training(layer, module_filter_fn=fits_float8, config=config)


def fits_float8(module: nn.Module, name: str = "") -> bool:
    """Returns True for a linear layer whose dimensions the hardware can multiply in float8. The name is ignored."""
    del name
    return isinstance(module, nn.Linear) and not (module.in_features % _DIVISOR or module.out_features % _DIVISOR)
