"""RoBERTa in the Hugging Face layout (`transformers.models.roberta`): BERT's encoder with other positions and heads.

XLM-RoBERTa (Conneau et al. 2020, arXiv:1911.02116) and CamemBERT (Martin et al. 2020, arXiv:1911.03894) have the same
arithmetic and the same names of tensors. Only their classes and defaults differ.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

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

MLM = (
    *renamed("mlm.dense", "lm_head.dense"),
    *renamed("mlm.norm", "lm_head.layer_norm"),
    Rule(("mlm.decoder.bias",), ("lm_head.bias",)),
)
CLASSIFIER = (*renamed("pooler.dense", "classifier.dense"), *renamed("classifier", "classifier.out_proj"))
SPECIAL_TOKENS: Mapping[str, Literal["cls", "sep"]] = {"bos_token_id": "cls", "eos_token_id": "sep"}
_CLASSES = (
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=MLM, extra_prefixes=("pooler.", "nsp.")),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=CLASSIFIER, poolings=("cls",)),
    *FINE_TUNED,
)
_DEFAULTS = {**DEFAULTS, "pad_token_id": 1}
_SEGMENTS = 1


def _family(model_type: str, class_prefix: str, vocab_size: int) -> Family:
    """Returns the description of RoBERTa or of a family with its layout.

    Args:
        model_type: `model_type` in config.json.
        class_prefix: Prefix of class names.
        vocab_size: Default of the class for a config.json without this key.
    """

    def read_config(published: Mapping[str, Any]) -> EncoderConfig:
        shared = read_shared_config(published, {**_DEFAULTS, "vocab_size": vocab_size})
        # Positions start at the row after the padding token's id.
        return EncoderConfig(family=model_type, position_offset=shared["pad_token_id"] + 1, **shared)

    def write_config(config: EncoderConfig) -> dict[str, Any]:
        shared = write_shared_config(config, position_offset=config.pad_token_id + 1, min_segments=_SEGMENTS)
        return {"model_type": model_type, **shared}

    return Family(
        prefix="roberta.",
        class_prefix=class_prefix,
        read_config=read_config,
        write_config=write_config,
        encoder_rules=partial(shared_encoder_rules, min_segments=_SEGMENTS),
        classes=lambda _config: _CLASSES,
        base_rules=POOLER,
        named_rules=(*MLM, *POOLER),
        tied=frozenset({"lm_head.decoder.weight"}),
        ignored=IGNORED | {"lm_head.decoder.bias"},
        special_tokens=SPECIAL_TOKENS,
        transform_activation="gelu",
        counts_after_padding=True,
    )


ROBERTA = _family("roberta", "Roberta", 50265)
XLM_ROBERTA = _family("xlm-roberta", "XLMRoberta", 30522)
CAMEMBERT = _family("camembert", "Camembert", 30522)
