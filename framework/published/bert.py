"""BERT and MiniLM in the Hugging Face layout (`transformers.models.bert`). RoBERTa shares the rules of the encoder."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.errors import CheckpointError
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

MLM = (
    *renamed("mlm.dense", "cls.predictions.transform.dense"),
    *renamed("mlm.norm", "cls.predictions.transform.LayerNorm"),
    Rule(("mlm.decoder.bias",), ("cls.predictions.bias",)),
)
"""Head over the vocabulary. Its output weight is the word embeddings."""
_NSP = tuple(renamed("nsp", "cls.seq_relationship"))
_FIELDS = {**FIELDS, "norm_eps": "layer_norm_eps", "hidden_dropout": "hidden_dropout_prob"}

POOLER = tuple(renamed("pooler.dense", "pooler.dense"))
# Three classes (for sequences, tokens and choices) give their last linear layer this name.
_CLASSIFIER = tuple(renamed("classifier", "classifier"))
FINE_TUNED = (
    PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=_CLASSIFIER),
    PublishedClass("ForQuestionAnswering", QUESTION_ANSWERING, head_rules=tuple(renamed("qa_outputs", "qa_outputs"))),
    PublishedClass("ForMultipleChoice", MULTIPLE_CHOICE, POOLER, _CLASSIFIER, poolings=("cls",)),
)
"""Classes that are the same in BERT and RoBERTa."""
IGNORED = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})


def read_shared_config(published: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the EncoderConfig fields that are the same in BERT and RoBERTa.

    Args:
        published: Content of config.json.
        defaults: Defaults of transformers for missing keys.

    Raises:
        CheckpointError: The model is a decoder, or its positions are not a learned table.
    """
    values = {**defaults, **published}
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise CheckpointError(
            "is_decoder or add_cross_attention is set, but no decoder can be read. Choose an encoder."
        )
    if values.get("position_embedding_type", "absolute") != "absolute":
        kind = values["position_embedding_type"]
        raise CheckpointError(
            f"position_embedding_type={kind!r} is unknown. Only 'absolute' positions can be read. Choose another model."
        )
    if "alibi_starting_size" in values:
        raise CheckpointError(
            "alibi_starting_size is set, as in MosaicBERT. Its layout and its feed-forward block cannot be read. "
            "Choose another model."
        )
    return {
        **read_fields(values, _FIELDS),
        "type_vocab_size": values["type_vocab_size"],
        "activation": read_activation(values["hidden_act"]),
        "embedding_dropout": values["hidden_dropout_prob"],
    }


def write_shared_config(
    config: EncoderConfig, position_offset: int, min_segments: int, others: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the keys of config.json that BERT and RoBERTa share.

    Args:
        config: Encoder configuration.
        position_offset: Position offset of the published class.
        min_segments: Number of rows in the segment table if the encoder has none. The class always has such a table;
            it is then filled with zeros.
        others: Further values of the encoder that are fixed in the class.

    Raises:
        CheckpointError: The class does not support this encoder.
    """
    needed: dict[str, Any] = {
        "position_encoding": "learned",
        "position_offset": position_offset,
        "norm_placement": "post",
        "gated": False,
        "bias": True,
        "norm_bias": True,
        **(others or {}),
    }
    if any(config.attention_window(layer) is not None for layer in range(config.num_layers)):
        needed["local_attention_window"] = None
    check_expressible(config, needed)
    return {
        **write_fields(config, _FIELDS),
        "type_vocab_size": config.type_vocab_size or min_segments,
        "hidden_act": write_activation(config.activation),
        "attention_probs_dropout_prob": config.attention_dropout,
        "position_embedding_type": "absolute",
    }


def _zero_segments(rows: int, config: EncoderConfig) -> Rule:
    """Returns a rule that writes a segment table of zeros for an encoder without one, and reads nothing back."""

    def zeros(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
        return [torch.zeros(rows, config.hidden_size)]

    return Rule((), ("embeddings.token_type_embeddings.weight",), lambda _tensors, _num_heads: [], zeros)


def shared_encoder_rules(config: EncoderConfig, min_segments: int) -> list[Rule]:
    """Returns the rules for the tensors of a BERT or RoBERTa encoder."""
    rules = [
        *renamed("embeddings.word_embeddings", "embeddings.word_embeddings", bias=False),
        *renamed("embeddings.position_embeddings", "embeddings.position_embeddings", bias=False),
        *renamed("embeddings.norm", "embeddings.LayerNorm"),
    ]
    if config.type_vocab_size:
        rules += renamed("embeddings.token_type_embeddings", "embeddings.token_type_embeddings", bias=False)
    else:
        rules.append(_zero_segments(min_segments, config))
    return rules + shared_layer_rules(config)


def shared_layer_rules(config: EncoderConfig, parts: tuple[str, str, str] = ("query", "key", "value")) -> list[Rule]:
    """Returns the rules for the layers of an encoder in the layout of BERT.

    Args:
        config: Encoder configuration.
        parts: Published names of the projections to queries, keys and values.
    """
    rules: list[Rule] = []
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layer.{layer}"
        query, key, value = (f"{theirs}.attention.self.{part}" for part in parts)
        query_key_value = (query, key, value)
        rules += fused_qkv(f"{ours}.attention.qkv", query_key_value, bias=True)
        rules += renamed(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        rules += renamed(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    return rules


DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_SEGMENTS = 2


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    return EncoderConfig(family="bert", **read_shared_config(published, DEFAULTS))


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    return {"model_type": "bert", **write_shared_config(config, position_offset=0, min_segments=_SEGMENTS)}


_CLASSES = (
    PublishedClass("ForPreTraining", PRETRAINING, POOLER, (*MLM, *_NSP)),
    PublishedClass("ForMaskedLM", PRETRAINING, head_rules=MLM),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, POOLER, _CLASSIFIER, poolings=("cls",)),
    *FINE_TUNED,
)

BERT = Family(
    prefix="bert.",
    class_prefix="Bert",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=partial(shared_encoder_rules, min_segments=_SEGMENTS),
    classes=lambda _config: _CLASSES,
    base_rules=POOLER,
    named_rules=(*MLM, *POOLER, *_NSP),
    tied=frozenset({"cls.predictions.decoder.weight"}),
    ignored=IGNORED | {"cls.predictions.decoder.bias"},
    special_tokens={},
)
