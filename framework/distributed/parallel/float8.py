"""Linear maps of the encoder's layers in float8 by torchao, an optional extra for CUDA.

Inputs, weights and gradients are cast to float8 for each product, with one scale a tensor from its largest value
(Micikevicius et al. 2022, "FP8 Formats for Deep Learning"); the weights themselves stay fp32, under their names, so
that a checkpoint does not tell.
"""

import importlib.util
from collections.abc import Iterable

import torch
from torch import nn

from framework.errors import ConfigError

_LEAST_CAPABILITY = (8, 9)
_DIVISOR = 16
"""The products of the hardware want dimensions that are multiples of it; tokens are padded by torchao."""


def check_float8(device_type: str) -> None:
    """Says whether float8 can be had here; cheap, to be asked before anything is spent.

    Raises:
        ConfigError: There is no CUDA device, it is older than 8.9 (Ada, Hopper), or torchao is not installed.
    """
    if device_type != "cuda":
        raise ConfigError(f"precision=float8 needs CUDA, but this runs on {device_type}; use precision=bf16.")
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        found, least = (".".join(map(str, version)) for version in (capability, _LEAST_CAPABILITY))
        raise ConfigError(
            f"precision=float8 needs CUDA compute capability {least} or newer, but this device has {found}; use "
            "precision=bf16."
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "precision=float8 needs torchao, which is not installed; install it with "
            "`pip install -e '.[float8]'`, or use precision=bf16."
        )


def apply_float8(layers: Iterable[nn.Module], emulate: bool = False) -> None:
    """Makes the linear maps of layers compute in float8, in place; before layers are compiled or sharded.

    Parameters stay the objects that they are. A map with a dimension that is no multiple of 16 stays as it is.

    Args:
        layers: Of encoder and decoder; embeddings and what gives scores are not among them.
        emulate: Compute by casts and fp32 products, on any device; for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    for layer in layers:
        convert_to_float8_training(layer, module_filter_fn=fits_float8, config=config)


def fits_float8(module: nn.Module, name: str = "") -> bool:
    """True for a linear map whose dimensions the hardware can multiply in float8; its name does not matter."""
    del name
    return isinstance(module, nn.Linear) and not (module.in_features % _DIVISOR or module.out_features % _DIVISOR)
