"""Starts a larger encoder from the weights of a smaller one of the same kind, by tiling.

Width: the tensor of the smaller encoder is placed in the middle of the larger one and repeated at both sides (Microsoft
2023, "Phi-2"). Depth: each layer starts from the layer at the same relative depth (Rae et al. 2021, "Gopher",
arXiv:2112.11446, appendix G). ModernBERT-large starts from ModernBERT-base so (Warner et al. 2024, arXiv:2412.13663).
"""

import re
from dataclasses import asdict, replace

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import PretrainedWeights

_SIZES = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
_FREE = (
    *_SIZES,
    *("hidden_dropout", "embedding_dropout", "feed_forward_dropout", "rope_theta_global", "rope_theta_local"),
    *("initializer_range", "output_initialization", "pad_token_id", "max_position_embeddings"),
)
"""Settings that may differ. Learned positions must have the same number, which their shapes show."""

_LAYER = re.compile(r"layers\.(\d+)\.")


def tiled(weights: PretrainedWeights, config: EncoderConfig) -> PretrainedWeights:
    """Returns the weights of a larger encoder.

    Args:
        weights: Weights of the smaller encoder. Heads whose width is that of the encoder are tiled too.
        config: Configuration of the larger encoder.

    Raises:
        ConfigError: The encoders differ in more than their sizes, a size is smaller, or heads have another width.
    """
    small = weights.config
    _check(weights.source, small, config)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in TransformerEncoder(config).named_parameters()}
    encoder = {}
    for name, shape in shapes.items():
        tensor = weights.encoder[_source_of(name, small.num_layers, config.num_layers, weights)]
        if name.startswith("layers.") and ".qkv." in name:
            tensor = _by_head(tensor, small.num_heads)
            encoder[name] = tile(tensor, _by_head(torch.empty(shape, device="meta"), config.num_heads).shape).reshape(
                shape
            )
        else:
            encoder[name] = tile(tensor, shape)
    heads = {
        name: tile(tensor, [config.hidden_size if size == small.hidden_size else size for size in tensor.shape])
        for name, tensor in weights.heads.items()
    }
    change = f"tiled from {small.num_layers} layers of {small.hidden_size:,} to {config.num_layers} of "
    change += f"{config.hidden_size:,}"
    return replace(weights, config=config, encoder=encoder, heads=heads, changes=(*weights.changes, change))


def tile(tensor: Tensor, shape: torch.Size | list[int]) -> Tensor:
    """Returns a tensor of another shape, with the given one in the middle, repeated at both sides of each dimension."""
    for dim, size in enumerate(shape):
        own = tensor.shape[dim]
        if size != own:
            tensor = tensor.index_select(dim, (torch.arange(size) - (size - own) // 2) % own)
    return tensor


def _by_head(tensor: Tensor, num_heads: int) -> Tensor:
    """Views a joint projection (heads * 3 * head_dim, ...) as (heads, 3, head_dim, ...)."""
    return tensor.unflatten(0, (num_heads, 3, -1))


def _source_of(name: str, num_layers: int, new_layers: int, weights: PretrainedWeights) -> str:
    """Returns the name of the parameter from which a parameter starts.

    The first layer may lack a norm that the others have (ModernBERT); a norm then starts from that of the second one.
    """
    match = _LAYER.match(name)
    if match is None:
        return name
    layer = int(match.group(1)) * num_layers // new_layers
    named = _LAYER.sub(f"layers.{layer}.", name, count=1)
    return named if named in weights.encoder else _LAYER.sub(f"layers.{layer + 1}.", name, count=1)


def _check(source: str, small: EncoderConfig, config: EncoderConfig) -> None:
    before, now = asdict(small), asdict(config)
    other = [name for name in now if name not in _FREE and before[name] != now[name]]
    if other:
        raise ConfigError(
            f"`init_tiling` is true, but model.{other[0]} is {now[other[0]]!r}, and init_from={source} has "
            f"{before[other[0]]!r}. Tiling changes only {', '.join(_SIZES)}. Set model.{other[0]} to the former value."
        )
    smaller = [name for name in _SIZES if now[name] < before[name]]
    if smaller:
        raise ConfigError(
            f"`init_tiling` is true, but model.{smaller[0]} is {now[smaller[0]]}, and init_from={source} has "
            f"{before[smaller[0]]}. Tiling enlarges an encoder. Choose at least {before[smaller[0]]}."
        )
    if small.head_dim != config.head_dim:
        raise ConfigError(
            f"`init_tiling` is true, but the heads of the model have {config.head_dim} channels, and those of "
            f"init_from={source} {small.head_dim}. Heads are tiled whole. Choose model.num_heads so that hidden_size / "
            f"num_heads is {small.head_dim}."
        )
    if small.embedding_size is not None or small.patch_size:
        raise ConfigError(
            f"`init_tiling` is true, but init_from={source} has projected embeddings or patches, which tiling does not "
            "know. Set init_tiling=false."
        )
