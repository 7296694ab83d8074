"""Translation models in the Hugging Face layout (`EncoderDecoderModel`).

The encoder belongs to any known family. The decoder is a BERT with cross-attention (`BertLMHeadModel`), as in Rothe et
al. 2020 (arXiv:1907.12461).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.bert import BERT, DEFAULTS, MLM, shared_encoder_rules
from framework.published.kinds import TRANSLATION
from framework.published.rules import Rule, part_of, renamed, to_ours, to_theirs

CLASS_NAME = "EncoderDecoderModel"
MODEL_TYPE = "encoder-decoder"

_ENCODER, _DECODER = "encoder.", "decoder."
_WORDS = "decoder.embeddings.word_embeddings.weight"
_OUTPUT = "mlm.decoder.weight"
_POSITIONS = "decoder.embeddings.position_embeddings.weight"
_BIAS, _BIAS_AGAIN = "decoder.cls.predictions.bias", "decoder.cls.predictions.decoder.bias"
_REPEATED = frozenset({_BIAS_AGAIN, "decoder.bert.embeddings.position_ids"})


def fits_bert_decoder(config: EncoderConfig) -> bool:
    """Returns True if linear layers and norms have biases, as they always do in a BERT decoder."""
    return config.bias and config.norm_bias


def _bert_decoder(config: EncoderConfig, num_layers: int, num_positions: int) -> EncoderConfig:
    """Returns the config of a BERT decoder with the widths, activation and norms of the encoder."""
    return replace(
        config,
        family="bert",
        num_layers=num_layers,
        max_position_embeddings=num_positions,
        type_vocab_size=1,
        position_encoding="learned",
        position_offset=0,
        norm_placement="post",
        gated=False,
        local_attention_window=None,
        embedding_size=None,
        relative_bias="none",
    )


def write_encoder_decoder(
    encoder_config: Mapping[str, Any],
    encoder_tensors: Mapping[str, Tensor],
    config: EncoderConfig,
    encoder: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    task_record: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the content of config.json and the published tensors.

    Args:
        encoder_config: Content of config.json for the encoder alone.
        encoder_tensors: Published tensors of the encoder, without a prefix.
        config: Encoder configuration.
        encoder: Encoder tensors under our names. The decoder may share the word embeddings.
        heads: Tensors of `TranslationHead`. Shared tensors may be omitted.
        task_record: Record of the task with `start_id` and `end_id`.
    """
    words = heads.get(_WORDS, encoder["embeddings.word_embeddings.weight"])
    output = heads.get(_OUTPUT, words)
    # Shared tensors are written twice, because safetensors files do not support sharing.
    decoder_tensors = {**heads, _WORDS: words.clone(), _OUTPUT: output.clone()}
    decoder_config = _bert_decoder(config, _num_layers(heads), heads[_POSITIONS].shape[0])
    special = {
        "decoder_start_token_id": task_record["start_id"],
        "eos_token_id": task_record["end_id"],
        "pad_token_id": config.pad_token_id,
    }
    decoder = {
        **BERT.write_config(decoder_config),
        "architectures": ["BertLMHeadModel"],
        "is_decoder": True,
        "add_cross_attention": True,
        "tie_word_embeddings": torch.equal(output, words),
        "bos_token_id": task_record["start_id"],
        "eos_token_id": task_record["end_id"],
    }
    published = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASS_NAME],
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "encoder": dict(encoder_config),
        "decoder": decoder,
        **special,
    }
    tensors = {_ENCODER + name: tensor for name, tensor in encoder_tensors.items()}
    tensors |= to_theirs(_decoder_rules(decoder_config), decoder_tensors, config.num_heads)
    return published, tensors | {_BIAS_AGAIN: tensors[_BIAS].clone()}


@dataclass(frozen=True)
class Parts:
    """A published model, split into its encoder and its head.

    Attributes:
        published: Content of config.json for the encoder.
        tensors: Tensors by published name: the encoder, and the heads if the model is a class of its family.
        heads: Tensors of the head under our names, for a model around an encoder (with a decoder, or our own class);
            otherwise empty.
        task_record: Record of the task, as far as config.json contains it.
        unused: Published names of the tensors that Cloze does not use.
        head_kind: `Task.head_kind` of `heads`; None if unknown.
    """

    published: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    task_record: Mapping[str, Any] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    head_kind: str | None = None


def split_encoder_decoder(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
    """Splits an `EncoderDecoderModel` into encoder and decoder; returns any other model unchanged as the encoder.

    Args:
        published: Content of config.json.
        tensors: Tensors by published name.

    Raises:
        CheckpointError: The decoder is not a BERT with cross-attention.
    """
    if published.get("model_type") != MODEL_TYPE:
        return Parts(published, tensors)
    decoder = published.get("decoder") or {}
    if decoder.get("model_type") != "bert" or not decoder.get("add_cross_attention"):
        raise CheckpointError(
            f"The decoder has model_type={decoder.get('model_type')!r} and add_cross_attention="
            f"{decoder.get('add_cross_attention')!r}. Only a BERT with cross-attention can be read. Choose another "
            "model."
        )
    config = BERT.read_config({**DEFAULTS, **decoder, "is_decoder": False, "add_cross_attention": False})
    rules = _decoder_rules(config)
    decoder_tensors = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(_DECODER)}
    special = {"start_id": "decoder_start_token_id", "end_id": "eos_token_id"}
    return Parts(
        published=published.get("encoder") or {},
        tensors=part_of(tensors, _ENCODER),
        heads=to_ours(rules, decoder_tensors, config.num_heads),
        task_record={ours: published[theirs] for ours, theirs in special.items() if published.get(theirs) is not None},
        unused=frozenset(decoder_tensors.keys() - {name for rule in rules for name in rule.theirs} - _REPEATED),
        head_kind=TRANSLATION.name,
    )


def _num_layers(heads: Mapping[str, Tensor]) -> int:
    indices = {name.split(".")[2] for name in heads if name.startswith("decoder.layers.")}
    return len(indices)


def _decoder_rules(config: EncoderConfig) -> list[Rule]:
    """Returns the rules for the decoder and its head over the vocabulary. `config` holds the decoder's sizes."""
    rules = []
    for rule in shared_encoder_rules(config, min_segments=1):
        prefixed = _prefixed(rule, "decoder.", "decoder.bert.")
        is_segments = prefixed.ours == ("decoder.embeddings.token_type_embeddings.weight",)
        rules.append(replace(prefixed, to_ours=_first_segment) if is_segments else prefixed)
    for layer in range(config.num_layers):
        ours, theirs = f"decoder.layers.{layer}.cross_attention", f"decoder.bert.encoder.layer.{layer}.crossattention"
        for name in ("query", "key", "value"):
            rules += renamed(f"{ours}.{name}", f"{theirs}.self.{name}")
        rules += renamed(f"{ours}.output", f"{theirs}.output.dense")
        rules += renamed(f"{ours}_norm", f"{theirs}.output.LayerNorm")
    rules += (_prefixed(rule, "", "decoder.") for rule in MLM)
    rules += renamed("mlm.decoder", "decoder.cls.predictions.decoder", bias=False)
    return rules


def _prefixed(rule: Rule, ours: str, theirs: str) -> Rule:
    return replace(
        rule, ours=tuple(ours + name for name in rule.ours), theirs=tuple(theirs + name for name in rule.theirs)
    )


def _first_segment(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    return [tensors[0][:1]]
