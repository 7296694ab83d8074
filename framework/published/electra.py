"""ELECTRA in the Hugging Face layout (`transformers.models.electra`; Clark et al. 2020, arXiv:2003.10555).

BERT's encoder. The embedding tables of the small models are narrower than the encoder. A generator has a head over the
vocabulary, a discriminator one score for each token: "was this token replaced?"
"""

from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.bert import DEFAULTS, IGNORED, read_shared_config, shared_encoder_rules, write_shared_config
from framework.published.family import Family, PublishedClass
from framework.published.kinds import (
    MULTIPLE_CHOICE,
    PRETRAINING,
    QUESTION_ANSWERING,
    REPLACED_TOKENS,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from framework.published.rules import Rule, renamed

_SEGMENTS = 2
_DEFAULTS = {**DEFAULTS, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "embedding_size": 128}
_GENERATOR = (
    *renamed("mlm.dense", "generator_predictions.dense"),
    *renamed("mlm.norm", "generator_predictions.LayerNorm"),
    Rule(("mlm.decoder.bias",), ("generator_lm_head.bias",)),
)
_DISCRIMINATOR = (
    *renamed("discriminator.dense", "discriminator_predictions.dense"),
    *renamed("discriminator.scores", "discriminator_predictions.dense_prediction"),
)
_SCORES = tuple(renamed("classifier", "classifier"))
_CLASSIFIER = (*renamed("pooler.dense", "classifier.dense"), *renamed("classifier", "classifier.out_proj"))
_CHOICES = (*renamed("pooler.dense", "sequence_summary.summary"), *_SCORES)
_CLASSES = (
    PublishedClass("ForPreTraining", REPLACED_TOKENS, head_rules=_DISCRIMINATOR, extra_prefixes=("generator.",)),
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=_GENERATOR, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=_CLASSIFIER, poolings=("cls",)),
    PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=_SCORES),
    PublishedClass("ForQuestionAnswering", QUESTION_ANSWERING, head_rules=tuple(renamed("qa_outputs", "qa_outputs"))),
    PublishedClass("ForMultipleChoice", MULTIPLE_CHOICE, head_rules=_CHOICES, poolings=("cls",)),
)
_SUMMARY = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
"""Settings of the pooling for multiple choice."""


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **_SUMMARY, **published}
    is_choice = any(str(name).endswith("ForMultipleChoice") for name in published.get("architectures") or ())
    other = [name for name, value in _SUMMARY.items() if values[name] != value]
    if is_choice and other:
        raise CheckpointError(
            f"{other[0]}={values[other[0]]!r} is unknown. A head of multiple choice is read only with "
            f"{other[0]}={_SUMMARY[other[0]]!r}. Choose another model."
        )
    shared = read_shared_config(values, _DEFAULTS)
    width = values["embedding_size"]
    return EncoderConfig(family="electra", embedding_size=None if width == shared["hidden_size"] else width, **shared)


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    shared = write_shared_config(
        config, position_offset=0, min_segments=_SEGMENTS, others={"embedding_size": config.embedding_size}
    )
    return {"model_type": "electra", **shared, "embedding_size": config.table_size, **_SUMMARY}


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = shared_encoder_rules(config, _SEGMENTS)
    if config.table_size != config.hidden_size:
        rules += renamed("embeddings.projection", "embeddings_project")
    return rules


ELECTRA = Family(
    prefix="electra.",
    class_prefix="Electra",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=(),
    named_rules=(*_GENERATOR, *_DISCRIMINATOR),
    tied=frozenset({"generator_lm_head.weight"}),
    ignored=IGNORED,
    special_tokens={},
    pooler_activation="gelu",
    transform_activation="gelu",
)
