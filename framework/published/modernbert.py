"""ModernBERT in the Hugging Face layout (`transformers.models.modernbert`; Warner et al. 2024, arXiv:2412.13663)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

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
from framework.published.rules import Rule, renamed, reordered_qkv, split_in_two

_DEFAULTS = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "pad_token_id": 50283,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "local_attention": 128,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
}
_FIELDS = {
    **FIELDS,
    "norm_eps": "norm_eps",
    "norm_bias": "norm_bias",
    "bias": "attention_bias",
    "hidden_dropout": "mlp_dropout",
    "embedding_dropout": "embedding_dropout",
}
_THETAS = {"full_attention": ("global_rope_theta", 160000.0), "sliding_attention": ("local_rope_theta", 10000.0)}


def _theta(published: Mapping[str, Any], kind: str) -> float:
    """Returns the rotary base of one kind of layer, from the keys of transformers 5 or of earlier versions."""
    parameters = (published.get("rope_parameters") or {}).get(kind) or {}
    if parameters.get("rope_type", "default") != "default":
        rope_type = parameters["rope_type"]
        raise CheckpointError(
            f"rope_type={rope_type!r} is unknown. Only 'default' rotary positions can be read. Choose another model."
        )
    old_name, default = _THETAS[kind]
    if "rope_theta" in parameters:
        return parameters["rope_theta"]
    if old_name == "local_rope_theta" and published.get(old_name, default) is None:
        return _theta(published, "full_attention")
    return published.get(old_name, default)


def _global_attention_every(published: Mapping[str, Any], num_layers: int) -> int:
    """Returns the interval of global-attention layers, from `layer_types` or the older count."""
    layer_types = published.get("layer_types")
    if layer_types is None:
        return published.get("global_attn_every_n_layers", 3)
    global_layers = [index for index, kind in enumerate(layer_types) if kind == "full_attention"]
    every = global_layers[1] if len(global_layers) > 1 else num_layers
    if len(layer_types) != num_layers or global_layers != list(range(0, num_layers, every)):
        raise CheckpointError(
            f"layer_types={layer_types} cannot be read. 'full_attention' must be in the first of every N layers. "
            "Choose another model."
        )
    return every


def _read_config(published: Mapping[str, Any]) -> EncoderConfig:
    values = {**_DEFAULTS, **published}
    bias = values["attention_bias"]
    if values["mlp_bias"] != bias or (values["classifier_bias"] and not bias):
        raise CheckpointError(
            f"attention_bias={bias}, mlp_bias={values['mlp_bias']} and classifier_bias={values['classifier_bias']} "
            "cannot be read. All linear layers must have biases or none. Choose another model."
        )
    activation = read_activation(values["hidden_activation"])
    head_activation = read_activation(values.get("classifier_activation", "gelu"))
    if head_activation != activation and values.get("architectures", ["ModernBertModel"]) != ["ModernBertModel"]:
        raise CheckpointError(
            f"classifier_activation={head_activation!r} differs from the encoder's activation {activation!r}. They "
            "must be the same. Choose another model."
        )
    every = _global_attention_every(published, values["num_hidden_layers"])
    return EncoderConfig(
        family="modernbert",
        **read_fields(values, _FIELDS),
        type_vocab_size=0,
        position_encoding="rotary",
        rope_theta_global=_theta(published, "full_attention"),
        rope_theta_local=_theta(published, "sliding_attention"),
        local_attention_window=None if every == 1 else values["local_attention"],
        global_attention_every=every,
        norm_placement="pre",
        activation=activation,
        gated=True,
        output_initialization="scaled",
    )


def _write_config(config: EncoderConfig) -> dict[str, Any]:
    needed = {"position_encoding": "rotary", "norm_placement": "pre", "gated": True, "type_vocab_size": 0}
    check_expressible(config, needed)
    window = config.local_attention_window
    return {
        "model_type": "modernbert",
        **write_fields(config, _FIELDS),
        "hidden_activation": write_activation(config.activation),
        "attention_dropout": config.attention_dropout,
        "mlp_bias": config.bias,
        # These are the keys of published ModernBERT folders. transformers 5 reads them too.
        "global_attn_every_n_layers": config.global_attention_every if window else 1,
        "local_attention": window or _DEFAULTS["local_attention"],
        "global_rope_theta": config.rope_theta_global,
        "local_rope_theta": config.rope_theta_local,
        "classifier_activation": write_activation(config.activation),
        "classifier_bias": config.bias,
        "decoder_bias": True,
    }


def _encoder_rules(config: EncoderConfig) -> list[Rule]:
    bias, norm_bias = config.bias, config.norm_bias
    rules = [
        *renamed("embeddings.word_embeddings", "embeddings.tok_embeddings", bias=False),
        *renamed("embeddings.norm", "embeddings.norm", norm_bias),
        *renamed("final_norm", "final_norm", norm_bias),
    ]
    for layer in range(config.num_layers):
        ours = theirs = f"layers.{layer}"
        if layer > 0:
            rules += renamed(f"{ours}.attention_norm", f"{theirs}.attn_norm", norm_bias)
        rules += reordered_qkv(f"{ours}.attention.qkv", f"{theirs}.attn.Wqkv", bias)
        rules += renamed(f"{ours}.attention.output", f"{theirs}.attn.Wo", bias)
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.mlp_norm", norm_bias)
        # The activation is applied to the first half.
        rules += split_in_two(f"{ours}.feed_forward.gate", f"{ours}.feed_forward.up", f"{theirs}.mlp.Wi", bias)
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.mlp.Wo", bias)
    return rules


def _head_rules(ours: str, config: EncoderConfig) -> tuple[Rule, ...]:
    """Returns the rules for a transform. Every class names it `head`, so its name does not identify the class."""
    dense = renamed(f"{ours}.dense", "head.dense", config.bias)
    return (*dense, *renamed(f"{ours}.norm", "head.norm", config.norm_bias))


def _classes(config: EncoderConfig) -> tuple[PublishedClass, ...]:
    transform = _head_rules("transform", config)
    classifier = (*transform, *renamed("classifier", "classifier"))
    mlm = (*_head_rules("mlm", config), Rule(("mlm.decoder.bias",), ("decoder.bias",)))
    answers = (*transform, *renamed("qa_outputs", "classifier"))
    pooled = partial(PublishedClass, head_rules=classifier, poolings=("cls", "mean"), pooling_key="classifier_pooling")
    return (
        PublishedClass("ForMaskedLM", PRETRAINING, head_rules=mlm, extra_prefixes=("pooler.", "nsp.")),
        pooled("ForSequenceClassification", SEQUENCE_CLASSIFICATION),
        PublishedClass("ForTokenClassification", TOKEN_CLASSIFICATION, head_rules=classifier),
        PublishedClass("ForQuestionAnswering", QUESTION_ANSWERING, head_rules=answers),
        pooled("ForMultipleChoice", MULTIPLE_CHOICE),
    )


MODERNBERT = Family(
    prefix="model.",
    class_prefix="ModernBert",
    read_config=_read_config,
    write_config=_write_config,
    encoder_rules=_encoder_rules,
    classes=_classes,
    base_rules=(),
    named_rules=(),
    tied=frozenset({"decoder.weight"}),
    ignored=frozenset(),
    special_tokens={"bos_token_id": "cls", "eos_token_id": "sep", "cls_token_id": "cls", "sep_token_id": "sep"},
    transforms_scores=True,
)
