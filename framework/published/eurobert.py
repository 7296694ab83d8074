"""EuroBERT in the Hugging Face layout (`transformers.models.eurobert`; Boizard et al. 2025, arXiv:2503.05500).

Pre-norm layers with RMS norms, SwiGLU and rotary positions. Keys and values that several queries share are read as a
copy for each query: the arithmetic is equal, and training may then change each copy. The head over the vocabulary
is one linear layer with a weight of its own.
"""

from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.family import (
    FIELDS,
    Family,
    PublishedClass,
    check_expressible,
    read_activation,
    read_fields,
    read_theta,
    write_activation,
    write_fields,
)
from framework.published.kinds import PRETRAINING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from framework.published.rules import Rule, grouped_qkv, renamed

_FIELDS = {**FIELDS, "norm_eps": "rms_norm_eps", "bias": "attention_bias"}
_THETA = 10000.0
_DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 128001,
    "attention_bias": False,
    "mlp_bias": False,
}
_SCORES = tuple(renamed("classifier", "classifier"))
_OTHER_CLASSES = (
    PublishedClass(
        "ForSequenceClassification",
        SEQUENCE_CLASSIFICATION,
        head_rules=(*renamed("pooler.dense", "dense"), *_SCORES),
        poolings=("cls", "mean"),
        pooling_key="classifier_pooling",
        pooling_names={"cls": "bos", "mean": "mean"},
    ),
    PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=_SCORES),
)


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **published}
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    for name, fixed in (("mlp_bias", values["attention_bias"]), ("head_dim", head_dim)):
        if values.get(name, fixed) not in (fixed, None):
            raise CheckpointError(
                f"{name}={values[name]!r} is unknown. EuroBERT is read only with {name}={fixed!r} here. Choose another "
                "model."
            )
    return EncoderConfig(
        family="eurobert",
        **read_fields(values, _FIELDS),
        type_vocab_size=0,
        position_encoding="rotary",
        rope_theta_global=read_theta(values, _THETA),
        norm_placement="pre",
        norm="rms",
        norm_bias=False,
        input_norm="first_layer",
        activation=read_activation(values["hidden_act"]),
        gated=True,
        hidden_dropout=0.0,
        embedding_dropout=0.0,
        output_initialization="scaled",
    )


def _classes(config: EncoderConfig) -> tuple[PublishedClass, ...]:
    words = tuple(renamed("mlm.decoder", "lm_head", config.bias))
    return PublishedClass("ForMaskedLM", PRETRAINING, head_rules=words), *_OTHER_CLASSES


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    check_expressible(
        config,
        {
            "type_vocab_size": 0,
            "position_encoding": "rotary",
            "local_attention_window": None,
            "norm_placement": "pre",
            "norm": "rms",
            "input_norm": "first_layer",
            "gated": True,
        },
    )
    return {
        "model_type": "eurobert",
        **write_fields(config, _FIELDS),
        "num_key_value_heads": config.num_heads,
        "hidden_act": write_activation(config.activation),
        "mlp_bias": config.bias,
        "attention_dropout": config.attention_dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta_global},
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = [
        *renamed("embeddings.word_embeddings", "embed_tokens", bias=False),
        *renamed("final_norm", "norm", bias=False),
    ]
    for layer in range(config.num_layers):
        ours = theirs = f"layers.{layer}"
        attention = f"{theirs}.self_attn"
        names = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False)
        rules += grouped_qkv(f"{ours}.attention.qkv", names, config.bias)
        rules += renamed(f"{ours}.attention.output", f"{attention}.o_proj", config.bias)
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm", bias=False)
        for part in ("gate", "up", "down"):
            rules += renamed(f"{ours}.feed_forward.{part}", f"{theirs}.mlp.{part}_proj", config.bias)
    return rules


EUROBERT = Family(
    prefix="model.",
    class_prefix="EuroBert",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=_classes,
    base_rules=(),
    named_rules=(),
    tied=frozenset(),
    ignored=frozenset(),
    special_tokens={"bos_token_id": "cls", "eos_token_id": "sep"},
    pooler_activation="gelu",
    ties_decoder=False,
)
