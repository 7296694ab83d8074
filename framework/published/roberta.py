"""RoBERTa in the Hugging Face layout (`transformers.models.roberta`): BERT's encoder with other positions and heads."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from framework.models.config import EncoderConfig
from framework.published.bert import (
    DEFAULTS,
    FINE_TUNED,
    IGNORED,
    POOLER,
    read_shared_config,
    shared_encoder_rules,
    write_shared_config,
)
from framework.published.family import Family, PublishedClass
from framework.published.kinds import PRETRAINING, SEQUENCE_CLASSIFICATION
from framework.published.rules import Rule, renamed

_MLM = (
    *renamed("mlm.dense", "lm_head.dense"),
    *renamed("mlm.norm", "lm_head.layer_norm"),
    Rule(("mlm.decoder.bias",), ("lm_head.bias",)),
)
_CLASSIFIER = (*renamed("pooler.dense", "classifier.dense"), *renamed("classifier", "classifier.out_proj"))
_CLASSES = (
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=_MLM, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=_CLASSIFIER, poolings=("cls",)),
    *FINE_TUNED,
)
_DEFAULTS = {**DEFAULTS, "vocab_size": 50265, "pad_token_id": 1}
_SEGMENTS = 1


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    shared = read_shared_config(published, _DEFAULTS)
    # Positions start at the row after the padding token's id.
    return EncoderConfig(family="roberta", position_offset=shared["pad_token_id"] + 1, **shared)


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    shared = write_shared_config(config, position_offset=config.pad_token_id + 1, min_segments=_SEGMENTS)
    return {"model_type": "roberta", **shared}


ROBERTA = Family(
    prefix="roberta.",
    class_prefix="Roberta",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=partial(shared_encoder_rules, min_segments=_SEGMENTS),
    classes=lambda _config: _CLASSES,
    base_rules=POOLER,
    named_rules=(*_MLM, *POOLER),
    tied=frozenset({"lm_head.decoder.weight"}),
    ignored=IGNORED | {"lm_head.decoder.bias"},
    special_tokens={"bos_token_id": "cls", "eos_token_id": "sep"},
)
