"""DistilBERT in the Hugging Face layout (`transformers.models.distilbert`; Sanh et al. 2019, arXiv:1910.01108).

BERT's arithmetic without segments, under other names. The classifier of sequences has a ReLU instead of the tanh of
BERT's pooler. Cloze also drops channels of the attention output, which DistilBERT does not.
"""

from collections.abc import Mapping
from typing import Any

from framework.models.config import EncoderConfig
from framework.published.family import (
    FIELDS,
    Family,
    PublishedClass,
    check_expressible,
    read_activation,
    read_fields,
    write_activation,
    write_fields,
)
from framework.published.kinds import (
    MULTIPLE_CHOICE,
    PRETRAINING,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from framework.published.rules import Rule, fused_qkv, renamed

_NORM_EPS = 1e-12
"""Constant in the norms, which is not a setting of the class."""
_FIELDS = {
    **FIELDS,
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_dropout": "dropout",
}
_DEFAULTS = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "activation": "gelu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
}
_MLM = (
    *renamed("mlm.dense", "vocab_transform"),
    *renamed("mlm.norm", "vocab_layer_norm"),
    Rule(("mlm.decoder.bias",), ("vocab_projector.bias",)),
)
_SCORES = tuple(renamed("classifier", "classifier"))
_POOLED = (*renamed("pooler.dense", "pre_classifier"), *_SCORES)
_CLASSES = (
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=_MLM, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=_POOLED, poolings=("cls",)),
    PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=_SCORES),
    PublishedClass("ForQuestionAnswering", QUESTION_ANSWERING, head_rules=tuple(renamed("qa_outputs", "qa_outputs"))),
    PublishedClass("ForMultipleChoice", MULTIPLE_CHOICE, head_rules=_POOLED, poolings=("cls",)),
)


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **published}
    return EncoderConfig(
        family="distilbert",
        **read_fields(values, _FIELDS),
        type_vocab_size=0,
        norm_eps=_NORM_EPS,
        activation=read_activation(values["activation"]),
        embedding_dropout=values["dropout"],
    )


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    needed: dict[str, Any] = {
        "type_vocab_size": 0,
        "position_encoding": "learned",
        "position_offset": 0,
        "norm_placement": "post",
        "gated": False,
        "bias": True,
        "norm_bias": True,
        "norm_eps": _NORM_EPS,
    }
    if any(config.attention_window(layer) is not None for layer in range(config.num_layers)):
        needed["local_attention_window"] = None
    check_expressible(config, needed)
    return {
        "model_type": "distilbert",
        **write_fields(config, _FIELDS),
        "activation": write_activation(config.activation),
        "attention_dropout": config.attention_dropout,
        "sinusoidal_pos_embds": False,
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = [
        *renamed("embeddings.word_embeddings", "embeddings.word_embeddings", bias=False),
        *renamed("embeddings.position_embeddings", "embeddings.position_embeddings", bias=False),
        *renamed("embeddings.norm", "embeddings.LayerNorm"),
    ]
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"transformer.layer.{layer}"
        attention = f"{theirs}.attention"
        query_key_value = (f"{attention}.q_lin", f"{attention}.k_lin", f"{attention}.v_lin")
        rules += fused_qkv(f"{ours}.attention.qkv", query_key_value, bias=True)
        rules += renamed(f"{ours}.attention.output", f"{attention}.out_lin")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.sa_layer_norm")
        rules += renamed(f"{ours}.feed_forward.up", f"{theirs}.ffn.lin1")
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.ffn.lin2")
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.output_layer_norm")
    return rules


DISTILBERT = Family(
    prefix="distilbert.",
    class_prefix="DistilBert",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=(),
    named_rules=_MLM,
    tied=frozenset({"vocab_projector.weight"}),
    ignored=frozenset({"embeddings.position_ids"}),
    special_tokens={},
    pooler_activation="relu",
)
