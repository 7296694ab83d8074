"""RoBERTa in the Hugging Face layout (`transformers.models.roberta`): BERT's encoder, other positions and heads."""

from collections.abc import Collection, Mapping
from typing import Any

from framework.models.config import EncoderConfig
from framework.models.published.bert import (
    DEFAULTS,
    IGNORED,
    POOLER,
    read_shared_config,
    shared_encoder_rules,
    write_shared_config,
)
from framework.models.published.family import PRETRAINING, Family, PublishedClass
from framework.models.published.rules import Rule, renamed

_MLM = (
    *renamed("mlm.dense", "lm_head.dense"),
    *renamed("mlm.norm", "lm_head.layer_norm"),
    Rule(("mlm.decoder.bias",), ("lm_head.bias",)),
)
_CLASSIFIER = (*renamed("pooler.dense", "classifier.dense"), *renamed("classifier", "classifier.out_proj"))
_DEFAULTS = {**DEFAULTS, "vocab_size": 50265, "pad_token_id": 1}
_SEGMENTS = 1


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    shared = read_shared_config(published, _DEFAULTS)
    # Its positions count from the row after that of the padding token.
    return EncoderConfig(family="roberta", position_offset=shared["pad_token_id"] + 1, **shared)


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    shared = write_shared_config(config, position_offset=config.pad_token_id + 1, min_segments=_SEGMENTS)
    return {"model_type": "roberta", **shared}


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    return shared_encoder_rules(config, _SEGMENTS)


def _import_rules(class_name: str) -> list[Rule]:
    is_classifier = class_name.endswith("ForSequenceClassification")
    return [*_MLM, *(_CLASSIFIER if is_classifier else POOLER)]


def _export_class(config: EncoderConfig, head_kind: str, names: Collection[str], pooling: str) -> PublishedClass:
    del config, names
    if head_kind == PRETRAINING:
        return PublishedClass("RobertaForMaskedLM", head_rules=_MLM)
    if pooling == "cls":
        return PublishedClass("RobertaForSequenceClassification", head_rules=_CLASSIFIER)
    return PublishedClass("RobertaModel", POOLER)


ROBERTA = Family(
    prefix="roberta.",
    base_class="RobertaModel",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    import_rules=_import_rules,
    export_class=_export_class,
    tied=frozenset({"lm_head.decoder.weight"}),
    ignored=IGNORED | {"lm_head.decoder.bias"},
    special_tokens={"bos_token_id": "cls", "eos_token_id": "sep"},
)
