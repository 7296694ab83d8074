"""ViT in the Hugging Face layout (`transformers.models.vit`; Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.family import Family, PublishedClass
from framework.published.kinds import IMAGE_CLASSIFICATION
from framework.published.rules import Rule, fused_qkv, renamed
from framework.published.vision import PROJECTION, patch_rule, read_tower_config, word_rules, write_tower_config

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_POOLER = tuple(renamed("pooler.dense", "pooler.dense"))
_CLASSES = (
    PublishedClass(
        "ForImageClassification",
        IMAGE_CLASSIFICATION,
        head_rules=tuple(renamed("classifier", "classifier")),
        poolings=("cls",),
    ),
)


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **published}
    if not values["qkv_bias"]:
        raise CheckpointError(
            "qkv_bias=False cannot be read. All linear layers must have biases. Choose another model."
        )
    return read_tower_config("vit", values, "first_layer")


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "vit",
        **write_tower_config(config),
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "qkv_bias": True,
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    patches = "embeddings.patch_embeddings.projection"
    rules = [
        *word_rules(config, "embeddings.cls_token", "embeddings.position_embeddings"),
        patch_rule(config, patches),
        Rule((f"{PROJECTION}.bias",), (f"{patches}.bias",)),
        *renamed("final_norm", "layernorm"),
    ]
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layer.{layer}"
        attention = f"{theirs}.attention.attention"
        query_key_value = (f"{attention}.query", f"{attention}.key", f"{attention}.value")
        rules += fused_qkv(f"{ours}.attention.qkv", query_key_value, bias=True)
        rules += renamed(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.layernorm_before")
        rules += renamed(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.layernorm_after")
    return rules


VIT = Family(
    prefix="vit.",
    class_prefix="ViT",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=_POOLER,
    named_rules=_POOLER,
    tied=frozenset(),
    ignored=frozenset({"embeddings.mask_token"}),
    special_tokens={},
    pixels=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
