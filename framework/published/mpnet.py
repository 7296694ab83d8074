"""MPNet in the Hugging Face layout (`transformers.models.mpnet`; Song et al. 2020, arXiv:2004.09297).

RoBERTa's positions and heads, no segments, and a bias of attention scores by relative position, shared by all layers.
"""

from collections.abc import Mapping
from typing import Any

from framework.models.config import EncoderConfig
from framework.published.bert import DEFAULTS, FINE_TUNED, IGNORED, POOLER, read_shared_config, write_shared_config
from framework.published.family import Family, PublishedClass
from framework.published.kinds import PRETRAINING, SEQUENCE_CLASSIFICATION
from framework.published.roberta import CLASSIFIER, MLM, SPECIAL_TOKENS
from framework.published.rules import Rule, fused_qkv, renamed

_DEFAULTS = {**DEFAULTS, "vocab_size": 30527, "type_vocab_size": 0, "relative_attention_num_buckets": 32}
_PADDING_ROW = 1
"""Padding id, which is not a setting of the class: positions are counted from the row after it."""
_MAX_DISTANCE = 128
_CLASSES = (
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=MLM, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=CLASSIFIER, poolings=("cls",)),
    *FINE_TUNED,
)


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    shared = read_shared_config(published, {**_DEFAULTS, "pad_token_id": _PADDING_ROW})
    return EncoderConfig(
        family="mpnet",
        position_offset=_PADDING_ROW + 1,
        relative_bias="bucketed",
        relative_buckets=published.get("relative_attention_num_buckets", _DEFAULTS["relative_attention_num_buckets"]),
        relative_distance=_MAX_DISTANCE,
        **shared | {"type_vocab_size": 0},
    )


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    fixed = {
        "type_vocab_size": 0,
        "pad_token_id": _PADDING_ROW,
        "relative_bias": "bucketed",
        "relative_distance": _MAX_DISTANCE,
    }
    shared = write_shared_config(config, position_offset=_PADDING_ROW + 1, min_segments=0, others=fixed)
    return {"model_type": "mpnet", **shared, "relative_attention_num_buckets": config.relative_buckets}


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = [
        *renamed("embeddings.word_embeddings", "embeddings.word_embeddings", bias=False),
        *renamed("embeddings.position_embeddings", "embeddings.position_embeddings", bias=False),
        *renamed("embeddings.norm", "embeddings.LayerNorm"),
        Rule(("relative_bias.table",), ("encoder.relative_attention_bias.weight",)),
    ]
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layer.{layer}"
        attention = f"{theirs}.attention.attn"
        rules += fused_qkv(f"{ours}.attention.qkv", (f"{attention}.q", f"{attention}.k", f"{attention}.v"), bias=True)
        rules += renamed(f"{ours}.attention.output", f"{attention}.o")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.attention.LayerNorm")
        rules += renamed(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    return rules


MPNET = Family(
    prefix="mpnet.",
    class_prefix="MPNet",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=POOLER,
    named_rules=(*MLM, *POOLER),
    tied=frozenset({"lm_head.decoder.weight"}),
    ignored=IGNORED | {"lm_head.decoder.bias"},
    special_tokens=SPECIAL_TOKENS,
    transform_activation="gelu",
    counts_after_padding=True,
)
