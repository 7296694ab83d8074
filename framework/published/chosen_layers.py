"""Starts a smaller encoder from some layers of a larger one (Sanh et al. 2019, "DistilBERT", arXiv:1910.01108)."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import PretrainedWeights

_LAYER = re.compile(r"layers\.(\d+)\.(.*)")


def with_layers(weights: PretrainedWeights, layers: Sequence[int]) -> PretrainedWeights:
    """Returns the weights of an encoder of the given layers. Embeddings, the final norm and heads stay.

    Args:
        weights: Weights of the larger encoder.
        layers: Numbers of its layers in the order of the new ones, counted from 1.

    Raises:
        ConfigError: There is no such layer, or a layer lacks weights of its new place (ModernBERT's first layer has no
            norm) or attends to another window than its new place.
    """
    num_layers = weights.config.num_layers
    wrong = [number for number in layers if not 1 <= number <= num_layers]
    if wrong or not layers:
        what = f"names layer {wrong[0]}" if wrong else "is empty"
        raise ConfigError(
            f"`init_layers` {what}, but init_from={weights.source} has layers 1 to {num_layers}. Choose some of them."
        )
    config = replace(weights.config, num_layers=len(layers))
    encoder = {name: tensor for name, tensor in weights.encoder.items() if not name.startswith("layers.")}
    for name, tensor in weights.encoder.items():
        if match := _LAYER.fullmatch(name):
            places = [place for place, number in enumerate(layers) if number == int(match.group(1)) + 1]
            encoder |= {f"layers.{place}.{match.group(2)}": tensor for place in places}
    with torch.device("meta"):
        expected = {name for name, _ in TransformerEncoder(config).named_parameters()}
    differing = sorted(expected ^ encoder.keys())
    if differing:
        raise ConfigError(
            f"`init_layers` is {list(layers)}, but layers of init_from={weights.source} are not alike: {differing[0]} "
            "exists in one place only. Begin with layer 1."
        )
    moved = [
        number
        for place, number in enumerate(layers)
        if weights.config.attention_window(number - 1) != config.attention_window(place)
    ]
    if moved:
        raise ConfigError(
            f"`init_layers` is {list(layers)}, but layer {moved[0]} of init_from={weights.source} attends to another "
            "window than its new place. Global and local attention alternate by place. Keep that pattern."
        )
    change = f"layers {', '.join(map(str, layers))} of {num_layers}"
    return replace(weights, config=config, encoder=encoder, changes=(*weights.changes, change))
