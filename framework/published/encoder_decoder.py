"""An encoder with a decoder on top in the Hugging Face layout, `EncoderDecoderModel`: what translation is exported as.

The encoder is one of a known family. The decoder is BERT with attention to the source (`BertLMHeadModel`), as Rothe et
al. 2020 (arXiv:1907.12461) made the first ones.
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
from framework.published.rules import Rule, renamed, to_ours, to_theirs

CLASS_NAME = "EncoderDecoderModel"
MODEL_TYPE = "encoder-decoder"

_ENCODER, _DECODER = "encoder.", "decoder."
_WORDS = "decoder.embeddings.word_embeddings.weight"
_OUTPUT = "mlm.decoder.weight"
_POSITIONS = "decoder.embeddings.position_embeddings.weight"
_BIAS, _BIAS_AGAIN = "decoder.cls.predictions.bias", "decoder.cls.predictions.decoder.bias"
_REPEATED = frozenset({_BIAS_AGAIN, "decoder.bert.embeddings.position_ids"})


def can_hold(config: EncoderConfig) -> bool:
    """Whether a decoder of this encoder's widths and biases is one of BERT's."""
    return config.bias and config.norm_bias


def write_encoder_decoder(
    encoder_config: Mapping[str, Any],
    encoder_tensors: Mapping[str, Tensor],
    config: EncoderConfig,
    encoder: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    side: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What stands in config.json, and the published tensors.

    Args:
        encoder_config: config.json of the encoder alone.
        encoder_tensors: Published tensors of the encoder, without a prefix.
        config: Of the encoder.
        encoder: Its tensors in our names; the word embeddings may be the decoder's too.
        heads: Of `TranslationHead`; tensors that it shares may be left out.
        side: Of the task: `start_id` and `end_id`.
    """
    words = heads.get(_WORDS, encoder["embeddings.word_embeddings.weight"])
    output = heads.get(_OUTPUT, words)
    # A tensor that has two names is written twice: files of safetensors know no sharing.
    whole = {**heads, _WORDS: words.clone(), _OUTPUT: output.clone()}
    decoder_config = replace(
        config,
        family="bert",
        num_layers=_num_layers(heads),
        max_position_embeddings=heads[_POSITIONS].shape[0],
        type_vocab_size=1,
        position_encoding="learned",
        position_offset=0,
        norm_placement="post",
        gated=False,
        local_attention_window=None,
    )
    special = {
        "decoder_start_token_id": side["start_id"],
        "eos_token_id": side["end_id"],
        "pad_token_id": config.pad_token_id,
    }
    decoder = {
        **BERT.write_config(decoder_config),
        "architectures": ["BertLMHeadModel"],
        "is_decoder": True,
        "add_cross_attention": True,
        "tie_word_embeddings": torch.equal(output, words),
        "bos_token_id": side["start_id"],
        "eos_token_id": side["end_id"],
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
    tensors |= to_theirs(_decoder_rules(decoder_config), whole, config.num_heads)
    return published, tensors | {_BIAS_AGAIN: tensors[_BIAS].clone()}


@dataclass(frozen=True)
class Parts:
    """A published model as an encoder of its own, and what stands on it.

    Attributes:
        published: config.json of the encoder.
        tensors: Of the encoder and of the heads of its own class, by their published names.
        heads: The decoder and its scores of words in our names; empty: there is no decoder.
        side: What an export keeps of the task, as far as config.json says it.
        unused: Tensors of the decoder that have no place here.
        head_kind: `Task.head_kind` of `heads`; None: unknown.
    """

    published: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    side: Mapping[str, Any] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    head_kind: str | None = None


def take_apart(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
    """The parts of an `EncoderDecoderModel`; any other model is its own only part.

    Args:
        published: config.json.
        tensors: By their published names.

    Raises:
        CheckpointError: The decoder is not a BERT with attention to the source.
    """
    if published.get("model_type") != MODEL_TYPE:
        return Parts(published, tensors)
    decoder = published.get("decoder") or {}
    if decoder.get("model_type") != "bert" or not decoder.get("add_cross_attention"):
        raise CheckpointError(
            f"The decoder has model_type={decoder.get('model_type')!r} and add_cross_attention="
            f"{decoder.get('add_cross_attention')!r}; only a BERT with it can be read."
        )
    config = BERT.read_config({**DEFAULTS, **decoder, "is_decoder": False, "add_cross_attention": False})
    rules = _decoder_rules(config)
    given = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(_DECODER)}
    special = {"start_id": "decoder_start_token_id", "end_id": "eos_token_id"}
    return Parts(
        published=published.get("encoder") or {},
        tensors={name.removeprefix(_ENCODER): tensor for name, tensor in tensors.items() if name.startswith(_ENCODER)},
        heads=to_ours(rules, given, config.num_heads),
        side={ours: published[theirs] for ours, theirs in special.items() if published.get(theirs) is not None},
        unused=frozenset(given.keys() - {name for rule in rules for name in rule.theirs} - _REPEATED),
        head_kind=TRANSLATION.name,
    )


def _num_layers(heads: Mapping[str, Tensor]) -> int:
    places = {name.split(".")[2] for name in heads if name.startswith("decoder.layers.")}
    return len(places)


def _decoder_rules(config: EncoderConfig) -> list[Rule]:
    """Names of the decoder and of its scores of words; `config` has its sizes."""
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
    del num_heads
    return [tensors[0][:1]]
