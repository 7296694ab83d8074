"""Vision towers of CLIP and SigLIP in the Hugging Face layout (`transformers.models.clip` and `siglip`).

CLIP: Radford et al. 2021 (arXiv:2103.00020); SigLIP: Zhai et al. 2023 (arXiv:2303.15343). Of a model with both towers
only the vision tower is read. SigLIP's pooling by attention (`head`) is not read: a task pools by the mean.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import Parts
from framework.published.family import Family, PublishedClass
from framework.published.kinds import IMAGE_CLASSIFICATION
from framework.published.rules import Rule, fused_qkv, part_of, renamed
from framework.published.vision import (
    POSITIONS,
    PROJECTION,
    patch_rule,
    read_tower_config,
    word_rules,
    write_tower_config,
)

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of pixels in CLIP's training data, which its folders without a preprocessor use."""

_TOWER, _ALONE = "vision_model.", "_vision_model"
"""Prefix of the vision tower's tensors in a model with both towers, and suffix of the model type of the tower alone."""

_SHARED = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "num_channels": 3,
    "initializer_range": 0.02,
}
_CLIP_DEFAULTS = {**_SHARED, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_DEFAULTS = {**_SHARED, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_CLASSIFIER = PublishedClass(
    "ForImageClassification",
    IMAGE_CLASSIFICATION,
    head_rules=tuple(renamed("classifier", "classifier")),
    poolings=("mean",),
)


def split_vision_tower(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
    """Returns the vision tower of CLIP or SigLIP, alone or in a model with a text tower; any other model unchanged.

    Args:
        published: Content of config.json.
        tensors: Tensors by published name.

    Raises:
        CheckpointError: config.json has no object `vision_config`.
    """
    model_type = str(published.get("model_type"))
    if model_type.endswith(_ALONE):
        return Parts({**published, "model_type": model_type.removesuffix(_ALONE)}, tensors)
    if model_type not in ("clip", "siglip"):
        return Parts(published, tensors)
    vision = published.get("vision_config")
    if not isinstance(vision, Mapping):
        raise CheckpointError(f"vision_config is {vision!r}, not an object. A tower needs it. Fetch the model again.")
    kept = ("architectures", "id2label", "label2id", "problem_type")
    head = part_of(tensors, "classifier.")
    return Parts(
        published={
            **vision,
            "model_type": model_type,
            **{key: published[key] for key in kept if key in published},
        },
        tensors=part_of(tensors, _TOWER) | {f"classifier.{name}": tensor for name, tensor in head.items()},
    )


def _read_clip(published: Mapping[str, Any]) -> EncoderConfig:
    return read_tower_config("clip", {**_CLIP_DEFAULTS, **published}, "both")


def _read_siglip(published: Mapping[str, Any]) -> EncoderConfig:
    return read_tower_config("siglip", {**_SIGLIP_DEFAULTS, **published}, "first_layer")


def _write_clip(config: EncoderConfig) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **write_tower_config(config)}


def _write_siglip(config: EncoderConfig) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **write_tower_config(config), "vision_use_head": False}


def _layer_rules(config: EncoderConfig) -> list[Rule]:
    rules = renamed("final_norm", "post_layernorm")
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layers.{layer}"
        attention = f"{theirs}.self_attn"
        query_key_value = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        rules += fused_qkv(f"{ours}.attention.qkv", query_key_value, bias=True)
        rules += renamed(f"{ours}.attention.output", f"{attention}.out_proj")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.layer_norm1")
        rules += renamed(f"{ours}.feed_forward.up", f"{theirs}.mlp.fc1")
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.mlp.fc2")
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.layer_norm2")
    return rules


def _clip_rules(config: EncoderConfig) -> list[Rule]:
    return [
        *word_rules(config, "embeddings.class_embedding", "embeddings.position_embedding.weight"),
        patch_rule(config, "embeddings.patch_embedding"),
        *renamed("embeddings.norm", "pre_layrnorm"),
        *_layer_rules(config),
    ]


def _siglip_rules(config: EncoderConfig) -> list[Rule]:
    return [
        *word_rules(config, None, "embeddings.position_embedding.weight"),
        patch_rule(config, "embeddings.patch_embedding"),
        Rule((f"{PROJECTION}.bias",), ("embeddings.patch_embedding.bias",)),
        *_layer_rules(config),
    ]


def _wrap_siglip(published: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json of `SiglipForImageClassification`, which names both towers and has the vision tower only."""
    labels = {key: published.pop(key) for key in ("id2label", "label2id", "problem_type") if key in published}
    published.pop("architectures")
    whole = {"model_type": "siglip", "architectures": ["SiglipForImageClassification"], "vision_config": published}
    return whole | labels


def _without_patch_bias(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors in which the positions of patches contain the bias of the patches, which CLIP lacks."""
    return {**encoder, POSITIONS: encoder[POSITIONS] + encoder[f"{PROJECTION}.bias"]}


CLIP = Family(
    prefix=_TOWER,
    class_prefix="CLIPVision",
    read_config=_read_clip,
    write_config=_write_clip,
    encoder_rules=_clip_rules,
    classes=lambda _config: (),
    base_rules=(),
    named_rules=(),
    tied=frozenset(),
    ignored=frozenset({"embeddings.position_ids"}),
    special_tokens={},
    pixels=(_CLIP_MEAN, _CLIP_STD),
    before_writing=_without_patch_bias,
)
SIGLIP = Family(
    prefix=_TOWER,
    class_prefix="SiglipVision",
    read_config=_read_siglip,
    write_config=_write_siglip,
    encoder_rules=_siglip_rules,
    classes=lambda _config: (_CLASSIFIER,),
    base_rules=(),
    named_rules=(),
    tied=frozenset(),
    ignored=frozenset({"embeddings.position_ids"}),
    special_tokens={},
    pixels=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    wrap_config=_wrap_siglip,
)
