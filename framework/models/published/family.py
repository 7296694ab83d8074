"""What Cloze must know of a family of published models; `bert`, `roberta` and `modernbert` each give such an object."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.published.rules import Rule

PRETRAINING = "pretraining"
SEQUENCE_CLASSIFICATION = "sequence_classification"

# Published names of activations and ours. Where two names have one formula, the last of them is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
}
_PUBLISHED_ACTIVATIONS = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
"""Fields of EncoderConfig and the keys of config.json that hold the same value in every family."""


@dataclass(frozen=True)
class PublishedClass:
    """A class of transformers and how our tensors reach it.

    Attributes:
        name: As in `architectures` of config.json.
        base_rules: Tensors of heads that the class keeps in its base model (the pooler).
        head_rules: Tensors of heads that stand beside the base model.
        config: What config.json says of the head.
    """

    name: str
    base_rules: tuple[Rule, ...] = ()
    head_rules: tuple[Rule, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One family of published models.

    Attributes:
        prefix: Of the base model's tensors inside a model with a head ("bert.").
        base_class: The class without heads.
        read_config: config.json to EncoderConfig; raises CheckpointError for what this encoder cannot do.
        write_config: EncoderConfig to config.json; raises CheckpointError for what the class cannot do.
        encoder_rules: Names of the encoder, published ones without the prefix.
        import_rules: Names of the heads of a published class, published ones without the prefix.
        export_class: Given the encoder's config, the kind of head, the names of its tensors and its pooling: the class
            that has them all, or as many as any has.
        tied: Published tensors that repeat the word embeddings.
        ignored: Published tensors that hold nothing of their own.
        special_tokens: Keys of config.json that name a special token's id, beside padding, and which one it is.
    """

    prefix: str
    base_class: str
    read_config: Callable[[Mapping[str, Any]], EncoderConfig]
    write_config: Callable[[EncoderConfig], dict[str, Any]]
    encoder_rules: Callable[[EncoderConfig], list[Rule]]
    import_rules: Callable[[str], list[Rule]]
    export_class: Callable[[EncoderConfig, str, Collection[str], str], PublishedClass]
    tied: frozenset[str]
    ignored: frozenset[str]
    special_tokens: Mapping[str, Literal["cls", "sep"]]


def read_fields(published: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """EncoderConfig fields whose values config.json has as they are."""
    return {ours: published[theirs] for ours, theirs in fields.items()}


def write_fields(config: EncoderConfig, fields: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `read_fields`."""
    return {theirs: getattr(config, ours) for ours, theirs in fields.items()}


def read_activation(published: str) -> str:
    """Our name of a published activation.

    Raises:
        CheckpointError: It is none that the encoder has.
    """
    if published not in _ACTIVATIONS:
        raise CheckpointError(f"The activation {published!r} is not known; known ones are {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[published]


def write_activation(ours: str) -> str:
    """The published name of our activation."""
    return _PUBLISHED_ACTIVATIONS[ours]


def check_expressible(config: EncoderConfig, needed: Mapping[str, Any]) -> None:
    """Compares a config with what the published class of its family always does.

    Raises:
        CheckpointError: They differ; the message names each difference.
    """
    wrong = [name for name, value in needed.items() if getattr(config, name) != value]
    if wrong:
        have = ", ".join(f"model.{name}={getattr(config, name)!r}" for name in wrong)
        want = ", ".join(f"{name}={needed[name]!r}" for name in wrong)
        raise CheckpointError(
            f"An encoder with {have} has no class in Hugging Face transformers, where family {config.family!r} always "
            f"has {want}; only encoders with these values, or of a family that fits, can be exported."
        )
