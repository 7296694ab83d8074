"""DeBERTa-v2 and v3 in the Hugging Face layout (`transformers.models.deberta_v2`; He et al. 2021, arXiv:2111.09543).

BERT's layers with disentangled attention: vectors of relative positions, projected with the weights of queries and
keys, take part in the scores. Cloze does not drop channels of these vectors, and reads no convolution (v2-xlarge).
"""

from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.bert import DEFAULTS, IGNORED, MLM, read_shared_config, shared_layer_rules, write_shared_config
from framework.published.family import Family, PublishedClass
from framework.published.kinds import (
    MULTIPLE_CHOICE,
    PRETRAINING,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from framework.published.rules import Rule, renamed

_DEFAULTS = {
    **DEFAULTS,
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "position_biased_input": True,
    "max_relative_positions": -1,
    "position_buckets": -1,
}
_FIXED: dict[str, Any] = {
    "relative_attention": True,
    "share_att_key": True,
    "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 0,
    "pooler_hidden_act": "gelu",
}
"""Settings of all published models but the largest of v2. Others are not read."""
_ABSENT = {
    "relative_attention": False,
    "share_att_key": False,
    "pos_att_type": [],
    "norm_rel_ebd": "none",
    "conv_kernel_size": 0,
    "pooler_hidden_act": "gelu",
}
"""Defaults of transformers for the settings above."""
_HEAD = "lm_predictions.lm_head"
_MLM = (
    *renamed("mlm.dense", f"{_HEAD}.dense"),
    *renamed("mlm.norm", f"{_HEAD}.LayerNorm"),
    Rule(("mlm.decoder.bias",), (f"{_HEAD}.bias",)),
)
_SCORES = tuple(renamed("classifier", "classifier"))
_POOLED = (*renamed("pooler.dense", "pooler.dense"), *_SCORES)
_CLASSES = (
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=_MLM, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=_POOLED, poolings=("cls",)),
    PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=_SCORES),
    PublishedClass("ForQuestionAnswering", QUESTION_ANSWERING, head_rules=tuple(renamed("qa_outputs", "qa_outputs"))),
    PublishedClass("ForMultipleChoice", MULTIPLE_CHOICE, head_rules=_POOLED, poolings=("cls",)),
)


def _setting(value: object) -> object:
    """Returns a setting in one form: lists and texts such as "p2c|c2p" as sorted lists."""
    if isinstance(value, str) and "|" in value:
        value = [part.strip() for part in value.lower().split("|")]
    return sorted(value) if isinstance(value, list) else value


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **_ABSENT, **published}
    for name, fixed in _FIXED.items():
        if _setting(values[name]) != _setting(fixed):
            raise CheckpointError(
                f"{name}={values[name]!r} is unknown. DeBERTa is read only with {name}={fixed!r}. Choose another model."
            )
    for name, fixed in {"embedding_size": values["hidden_size"], "pooler_hidden_size": values["hidden_size"]}.items():
        if values.get(name, fixed) != fixed:
            raise CheckpointError(
                f"{name}={values[name]!r} differs from hidden_size={fixed}. DeBERTa is read only with equal widths. "
                "Choose another model."
            )
    if values["position_buckets"] < 1:
        raise CheckpointError(
            f"position_buckets={values['position_buckets']!r} is unknown. DeBERTa is read only with buckets of "
            "relative positions, as v2 and v3 have them. Choose another model."
        )
    distance = values["max_relative_positions"]
    return EncoderConfig(
        family="deberta-v2",
        position_encoding="learned" if values["position_biased_input"] else "none",
        relative_bias="disentangled",
        relative_buckets=2 * values["position_buckets"],
        relative_distance=distance if distance > 0 else values["max_position_embeddings"],
        **read_shared_config(values, _DEFAULTS),
    )


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    encoding = config.position_encoding if config.position_encoding in ("learned", "none") else "none"
    shared = write_shared_config(
        config,
        position_offset=0,
        min_segments=0,
        others={"relative_bias": "disentangled", "position_encoding": encoding},
    )
    return {
        "model_type": "deberta-v2",
        **shared,
        **_FIXED,
        "position_biased_input": config.position_encoding == "learned",
        "position_buckets": config.relative_buckets // 2,
        "max_relative_positions": config.relative_distance,
        "pooler_dropout": 0.0,
        "pooler_hidden_size": config.hidden_size,
        "legacy": False,
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = [
        *renamed("embeddings.word_embeddings", "embeddings.word_embeddings", bias=False),
        *renamed("embeddings.norm", "embeddings.LayerNorm"),
        Rule(("relative_bias.table",), ("encoder.rel_embeddings.weight",)),
        *renamed("relative_bias.norm", "encoder.LayerNorm"),
    ]
    for name, exists in (
        ("position_embeddings", config.position_encoding == "learned"),
        ("token_type_embeddings", config.type_vocab_size > 0),
    ):
        rules += renamed(f"embeddings.{name}", f"embeddings.{name}", bias=False) if exists else []
    return rules + shared_layer_rules(config, ("query_proj", "key_proj", "value_proj"))


DEBERTA = Family(
    prefix="deberta.",
    class_prefix="DebertaV2",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=(),
    named_rules=_MLM,
    tied=frozenset({"cls.predictions.decoder.weight"}),
    # The tables of positions belong to checkpoints, although v3 does not use them.
    ignored=IGNORED | {"cls.predictions.decoder.bias", "embeddings.position_embeddings.weight"},
    special_tokens={},
    older_rules=lambda _config: [*MLM],
    pooler_activation="gelu",
)
