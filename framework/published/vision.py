"""Vision towers in the Hugging Face layout: what ViT, CLIP and SigLIP share (`framework.published.vit` and `clip`).

A tower has no words. Its tokenizer here holds special tokens only, and its class token is the embedding of [CLS].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import CheckpointError
from framework.files import read_json_object
from framework.models.config import EncoderConfig
from framework.published.family import (
    FIELDS,
    check_expressible,
    read_activation,
    read_fields,
    write_activation,
    write_fields,
)
from framework.published.rules import Rule

PICTURE_TOKENIZER = Path(__file__).parent.parent / "data" / "tokenization" / "picture_vocabulary"
"""Folder of the tokenizer of vision towers, which has special tokens only."""

PREPROCESSOR_FILE = "preprocessor_config.json"

_CLASS_ID, _VOCAB_SIZE = 2, 5
"""Id of [CLS] and number of tokens in `PICTURE_TOKENIZER`."""

_CHANNELS = 3
_TEXT_POSITIONS = 512
"""Smallest number of rows in the position table of words. A tower has one word, the class token, at position 0."""

PROJECTION = "embeddings.patch_embeddings.projection"
POSITIONS = "embeddings.patch_embeddings.grid_positions.weight"
_WORDS, _WORD_POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
_OF_WORDS = ("vocab_size", "max_position_embeddings", "pad_token_id")
_FIELDS = {**{ours: theirs for ours, theirs in FIELDS.items() if ours not in _OF_WORDS}, "norm_eps": "layer_norm_eps"}


def read_tower_config(family: str, published: Mapping[str, Any], input_norm: str) -> EncoderConfig:
    """Returns the EncoderConfig of a vision tower.

    Args:
        family: Family of the tower.
        published: Content of config.json, with defaults of transformers for missing keys.
        input_norm: `EncoderConfig.input_norm` of the family.

    Raises:
        CheckpointError: Cloze does not support a setting.
    """
    image_size, patch_size = (_edge(name, published[name]) for name in ("image_size", "patch_size"))
    if published["num_channels"] != _CHANNELS or image_size % patch_size:
        raise CheckpointError(
            f"num_channels={published['num_channels']}, image_size={image_size} and patch_size={patch_size} cannot be "
            "read. A tower must read RGB pictures that its patches divide. Choose another model."
        )
    side = image_size // patch_size
    return EncoderConfig(
        family=family,
        vocab_size=_VOCAB_SIZE,
        max_position_embeddings=max(_TEXT_POSITIONS, side * side + 1),
        **read_fields(published, _FIELDS),
        type_vocab_size=0,
        norm_placement="pre",
        input_norm=input_norm,
        activation=read_activation(published["hidden_act"]),
        hidden_dropout=published.get("hidden_dropout_prob", 0.0),
        embedding_dropout=published.get("hidden_dropout_prob", 0.0),
        patch_size=patch_size,
        patch_grid=side,
        patch_positions="grid",
    )


def _edge(name: str, value: Any) -> int:
    edges = {int(edge) for edge in value} if isinstance(value, Sequence) else {value}
    if len(edges) != 1 or not all(isinstance(edge, int) and edge > 0 for edge in edges):
        raise CheckpointError(
            f"{name}={value!r} cannot be read. It must be one edge of a square. Choose another model."
        )
    return edges.pop()


def write_tower_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the keys of config.json that all towers share.

    Raises:
        CheckpointError: The classes of transformers do not support this encoder.
    """
    check_expressible(
        config,
        {
            "vocab_size": _VOCAB_SIZE,
            "position_encoding": "learned",
            "position_offset": 0,
            "norm_placement": "pre",
            "input_norm": "both" if config.family == "clip" else "first_layer",
            "local_attention_window": None,
            "gated": False,
            "bias": True,
            "norm_bias": True,
            "type_vocab_size": 0,
            "patch_positions": "grid",
            "relative_bias": "none",
        },
    )
    return {
        **write_fields(config, _FIELDS),
        "hidden_act": write_activation(config.activation),
        "image_size": config.patch_grid * config.patch_size,
        "patch_size": config.patch_size,
        "num_channels": _CHANNELS,
    }


def word_rules(config: EncoderConfig, class_token: str | None, positions: str) -> list[Rule]:
    """Returns the rules for the class token and for the positions of class token and patches.

    Published positions are one table, whose first row belongs to the class token if there is one. Of our word tables,
    only the rows of the class token are published.

    Args:
        config: Encoder configuration.
        class_token: Published name of the class token; None: the family has none.
        positions: Published name of the positions.
    """
    rows = config.max_position_embeddings

    def read_class(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        words = torch.zeros(config.vocab_size, config.hidden_size)
        if tensors:
            words[_CLASS_ID] = tensors[0].flatten()
        return [words]

    def read_positions(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        table = tensors[0].reshape(-1, config.hidden_size)
        first, patches = (table[:0], table) if class_token is None else (table[:1], table[1:])
        return [torch.cat((first, table.new_zeros(rows - len(first), config.hidden_size))), patches.contiguous()]

    def write_class(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        row = tensors[0][_CLASS_ID]
        return [row.clone() if config.family == "clip" else row.clone().view(1, 1, -1)]

    def write_positions(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        table = tensors[1] if class_token is None else torch.cat((tensors[0][:1], tensors[1]))
        return [table[None] if config.family == "vit" else table]

    theirs = () if class_token is None else (class_token,)
    return [
        Rule((_WORDS,), theirs, read_class, write_class if theirs else lambda _tensors, _num_heads: []),
        Rule((_WORD_POSITIONS, POSITIONS), (positions,), read_positions, write_positions),
    ]


def patch_rule(config: EncoderConfig, theirs: str) -> Rule:
    """Returns the rule for the kernel of the patches: (hidden, channels, size, size), and here (hidden, patch_dim)."""
    size = config.patch_size

    def read(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        return [tensors[0].permute(0, 2, 3, 1).flatten(1).contiguous()]

    def write(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        return [tensors[0].view(-1, size, size, _CHANNELS).permute(0, 3, 1, 2).contiguous()]

    return Rule((f"{PROJECTION}.weight",), (f"{theirs}.weight",), read, write)


def with_pixels(
    encoder: Mapping[str, Tensor], folder: Path, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Returns encoder tensors that take pixels in [-1, 1] instead of those that the tower normalises.

    The linear map of the patches contains the normalisation: (pixels - mean) / std, and pixels = (ours + 1) / 2.

    Args:
        encoder: Tensors under our names. The bias of the patches may be missing, and is then 0.
        folder: Folder of the tower. Its preprocessor_config.json states the normalisation.
        mean: Mean of pixels in [0, 1] by channel, if there is no such file.
        std: Standard deviation by channel in that case.

    Raises:
        CheckpointError: The file cannot be used.
    """
    if f"{PROJECTION}.weight" not in encoder:  # reported with the other missing weights
        return dict(encoder)
    means, deviations = (torch.tensor(each, dtype=torch.float64) for each in _normalization(folder, mean, std))
    kernel = encoder[f"{PROJECTION}.weight"].double().unflatten(1, (-1, _CHANNELS))
    bias = encoder.get(f"{PROJECTION}.bias", torch.zeros(len(kernel))).double()
    bias = bias + (kernel * ((0.5 - means) / deviations)).sum((1, 2))
    weight = (kernel / (2 * deviations)).flatten(1)
    return {**encoder, f"{PROJECTION}.weight": weight.float(), f"{PROJECTION}.bias": bias.float()}


def _normalization(
    folder: Path, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = folder / PREPROCESSOR_FILE
    if not file.is_file():
        return tuple(mean), tuple(std)
    content = read_json_object(file)
    given = [content.get(name, default) for name, default in (("image_mean", mean), ("image_std", std))]
    if not content.get("do_normalize", True):
        given = [(0.0,) * _CHANNELS, (1.0,) * _CHANNELS]
    numbers = [
        isinstance(values, list | tuple)
        and len(values) == _CHANNELS
        and all(isinstance(value, int | float) for value in values)
        for values in given
    ]
    if not all(numbers) or not all(value > 0 for value in given[1]):
        raise CheckpointError(
            f"{file} has image_mean={given[0]!r} and image_std={given[1]!r}. Each must hold a number for each of "
            f"{_CHANNELS} channels, and deviations must be positive. Fetch the model again."
        )
    return tuple(map(float, given[0])), tuple(map(float, given[1]))


def preprocessor_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json for weights that take pixels in [-1, 1]."""
    edge = config.patch_grid * config.patch_size
    half = [0.5] * _CHANNELS
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": edge, "width": edge},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
    }
