"""NeoBERT in its published layout (chandar-lab/NeoBERT; Le Breton et al. 2025, arXiv:2502.19587).

Pre-norm layers with RMS norms, SwiGLU and rotary positions. transformers has no class for it: an export names the
authors' code on the Hugging Face Hub, which `trust_remote_code=True` downloads. The head over the vocabulary is one
linear layer with a weight of its own.
"""

from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.family import FIELDS, Family, PublishedClass, check_expressible, read_fields, write_fields
from framework.published.kinds import PRETRAINING, SEQUENCE_CLASSIFICATION
from framework.published.rules import Rule, interleaved_qkv, renamed, split_in_two

_FIELDS = {
    **{name: key for name, key in FIELDS.items() if name not in ("intermediate_size", "initializer_range")},
    "max_position_embeddings": "max_length",
    "norm_eps": "norm_eps",
    "initializer_range": "embedding_init_range",
}
_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "embedding_init_range": 0.02,
    "norm_eps": 1e-6,
    "pad_token_id": 0,
    "max_length": 1024,
}
_MULTIPLE = 8
"""The width of the feed-forward block is two thirds of `intermediate_size`, rounded up to a multiple of this number."""
_THETA = 10000.0
_CODE = "chandar-lab/NeoBERT--model"
_POOLED = (*renamed("pooler.dense", "dense"), *renamed("classifier", "classifier"))
_CLASSES = (
    PublishedClass("LMHead", PRETRAINING, head_rules=tuple(renamed("mlm.decoder", "decoder"))),
    PublishedClass("ForSequenceClassification", SEQUENCE_CLASSIFICATION, head_rules=_POOLED, poolings=("cls",)),
)


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **published}
    two_thirds = int(2 * values["intermediate_size"] / 3)
    return EncoderConfig(
        family="neobert",
        **read_fields(values, _FIELDS),
        intermediate_size=-(-two_thirds // _MULTIPLE) * _MULTIPLE,
        type_vocab_size=0,
        position_encoding="rotary",
        rope_theta_global=_THETA,
        norm_placement="pre",
        norm="rms",
        norm_bias=False,
        input_norm="first_layer",
        activation="silu",
        gated=True,
        bias=False,
        hidden_dropout=0.0,
        embedding_dropout=0.0,
    )


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    check_expressible(
        config,
        {
            "type_vocab_size": 0,
            "position_encoding": "rotary",
            "rope_theta_global": _THETA,
            "local_attention_window": None,
            "norm_placement": "pre",
            "norm": "rms",
            "input_norm": "first_layer",
            "activation": "silu",
            "gated": True,
            "bias": False,
        },
    )
    if config.intermediate_size % _MULTIPLE:
        raise CheckpointError(
            f"model.intermediate_size is {config.intermediate_size}. The class of NeoBERT has multiples of "
            f"{_MULTIPLE}. Export an encoder with such a width."
        )
    return {
        "model_type": "neobert",
        **write_fields(config, _FIELDS),
        "intermediate_size": 3 * config.intermediate_size // 2,
        "auto_map": {
            "AutoConfig": f"{_CODE}.NeoBERTConfig",
            "AutoModel": f"{_CODE}.NeoBERT",
            "AutoModelForMaskedLM": f"{_CODE}.NeoBERTLMHead",
            "AutoModelForSequenceClassification": f"{_CODE}.NeoBERTForSequenceClassification",
        },
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    rules = [
        *renamed("embeddings.word_embeddings", "encoder", bias=False),
        *renamed("final_norm", "layer_norm", bias=False),
    ]
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"transformer_encoder.{layer}"
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.attention_norm", bias=False)
        rules += interleaved_qkv(f"{ours}.attention.qkv", f"{theirs}.qkv")
        rules += renamed(f"{ours}.attention.output", f"{theirs}.wo", bias=False)
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.ffn_norm", bias=False)
        # The activation is applied to the first half.
        rules += split_in_two(f"{ours}.feed_forward.gate", f"{ours}.feed_forward.up", f"{theirs}.ffn.w12", bias=False)
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.ffn.w3", bias=False)
    return rules


NEOBERT = Family(
    prefix="model.",
    class_prefix="NeoBERT",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=lambda _config: _CLASSES,
    base_rules=(),
    named_rules=(),
    tied=frozenset(),
    ignored=frozenset({"freqs_cis"}),
    special_tokens={},
    has_class=False,
    ties_decoder=False,
    decoder_has_bias=True,
)
