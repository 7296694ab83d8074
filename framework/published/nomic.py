"""NomicBERT in the Hugging Face layout (`transformers.models.nomic_bert`; Nussbaum et al. 2024, arXiv:2402.01613).

BERT with rotary positions, SwiGLU and no biases in the linear layers of the encoder. The layout of the first folders
(nomic-bert-2048, nomic-embed-text), which came with code of their own, is read too.
"""

from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.bert import IGNORED, MLM, POOLER
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
from framework.published.rules import Rule, fused_qkv, renamed, reordered_qkv

_FIELDS = {
    **FIELDS,
    "type_vocab_size": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
}
_THETA = 1000.0
_DEFAULTS = {
    "vocab_size": 30528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "max_position_embeddings": 2048,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_OLDER_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "rotary_emb_base": "rope_theta",
}
"""Keys of config.json in the first folders."""
_OLDER_FIXED: dict[str, Any] = {
    "activation_function": "swiglu",
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "use_rms_norm": False,
}
_MLM = tuple(Rule(rule.ours, tuple(name.replace("LayerNorm", "layer_norm") for name in rule.theirs)) for rule in MLM)
_SCORES = tuple(renamed("classifier", "classifier"))
_CLASSES = (
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=_MLM, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, POOLER, _SCORES, poolings=("cls",)),
    PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=_SCORES),
)


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **published}
    if "n_embd" in published:
        for name, fixed in _OLDER_FIXED.items():
            if published.get(name) not in (fixed, None):
                raise CheckpointError(
                    f"{name}={published[name]!r} is unknown. NomicBERT is read only with {name}={fixed!r}. Choose "
                    "another model."
                )
        values |= {new: published[old] for old, new in _OLDER_KEYS.items() if old in published}
        values["hidden_act"] = "silu"
    return EncoderConfig(
        family="nomic_bert",
        **read_fields(values, _FIELDS),
        position_encoding="rotary",
        rope_theta_global=read_theta(values, _THETA),
        activation=read_activation(values["hidden_act"]),
        gated=True,
        bias=False,
        embedding_dropout=values["hidden_dropout_prob"],
    )


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    needed: dict[str, Any] = {
        "position_encoding": "rotary",
        "norm_placement": "post",
        "gated": True,
        "bias": False,
        "norm_bias": True,
        "local_attention_window": None,
    }
    check_expressible(config, needed)
    if config.type_vocab_size < 1:
        check_expressible(config, {"type_vocab_size": 2})
    return {
        "model_type": "nomic_bert",
        **write_fields(config, _FIELDS),
        "hidden_act": write_activation(config.activation),
        "attention_probs_dropout_prob": config.attention_dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta_global},
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = [
        *renamed("embeddings.word_embeddings", "embeddings.word_embeddings", bias=False),
        *renamed("embeddings.token_type_embeddings", "embeddings.token_type_embeddings", bias=False),
        *renamed("embeddings.norm", "embeddings.LayerNorm"),
    ]
    for layer in range(config.num_layers):
        ours = theirs = f"layers.{layer}"
        attention = f"{theirs}.self_attn"
        names = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        rules += fused_qkv(f"{ours}.attention.qkv", names, bias=False)
        rules += renamed(f"{ours}.attention.output", f"{attention}.o_proj", bias=False)
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.post_attention_layernorm")
        for part in ("gate", "up", "down"):
            rules += renamed(f"{ours}.feed_forward.{part}", f"{theirs}.mlp.{part}_proj", bias=False)
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.post_mlp_layernorm")
    return rules


def _older_rules(config: EncoderConfig) -> list[Rule]:
    rules = [*renamed("embeddings.norm", "emb_ln"), *MLM]
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layers.{layer}"
        rules += reordered_qkv(f"{ours}.attention.qkv", f"{theirs}.attn.Wqkv", bias=False)
        rules += renamed(f"{ours}.attention.output", f"{theirs}.attn.out_proj", bias=False)
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.norm1")
        for part, name in (("up", "fc11"), ("gate", "fc12"), ("down", "fc2")):
            rules += renamed(f"{ours}.feed_forward.{part}", f"{theirs}.mlp.{name}", bias=False)
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.norm2")
    return rules


NOMIC_BERT = Family(
    prefix="nomic_bert.",
    class_prefix="NomicBert",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=POOLER,
    named_rules=(*_MLM, *POOLER),
    tied=frozenset({"cls.predictions.decoder.weight"}),
    ignored=IGNORED | {"cls.predictions.decoder.bias"},
    special_tokens={},
    older_rules=_older_rules,
    older_prefixes=("bert.",),
    transform_has_bias=True,
)
