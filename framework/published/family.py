"""What Cloze must know of a family of published models; `bert`, `roberta` and `modernbert` each give such an object."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.kinds import HeadKind
from framework.published.rules import Rule

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

BASE_SUFFIX = "Model"
_SCORES = ("classifier.weight", "qa_outputs.weight")
"""Our names of the last linear layer of heads that score labels, choices and positions."""

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
        suffix: Its name after that of the family ("ForTokenClassification").
        kind: The kind of head that it has; None: the base class, which has none.
        base_rules: Tensors of heads that the class keeps in its base model (the pooler).
        head_rules: Tensors of heads that stand beside the base model.
        poolings: Those that the class can do, the first one by default; empty: it does not pool.
        pooling_key: Key of config.json that names the pooling; None: the class always has the same.
        beside: Beginnings of the names of other tensors with which a head may still be taken for one of this class,
            since its scores do not depend on them.
    """

    suffix: str
    kind: HeadKind | None = None
    base_rules: tuple[Rule, ...] = ()
    head_rules: tuple[Rule, ...] = ()
    poolings: tuple[str, ...] = ()
    pooling_key: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Our names of the head's tensors that the class has."""
        return frozenset(name for rule in (*self.base_rules, *self.head_rules) for name in rule.ours)


@dataclass(frozen=True)
class Family:
    """One family of published models.

    Attributes:
        prefix: Of the base model's tensors inside a model with a head ("bert.").
        class_prefix: Of the names of its classes ("Bert").
        read_config: config.json to EncoderConfig; raises CheckpointError for what this encoder cannot do.
        write_config: EncoderConfig to config.json; raises CheckpointError for what the class cannot do.
        encoder_rules: Names of the encoder, published ones without the prefix.
        classes: The classes with heads; where two could hold the same head, the one that holds more of it comes first.
        base_rules: Tensors of heads that the base class can keep.
        named_rules: Tensors of heads whose published names say what they are, whichever class they come from.
        tied: Published tensors that repeat the word embeddings.
        ignored: Published tensors that hold nothing of their own.
        special_tokens: Keys of config.json that name a special token's id, beside padding, and which one it is.
    """

    prefix: str
    class_prefix: str
    read_config: Callable[[Mapping[str, Any]], EncoderConfig]
    write_config: Callable[[EncoderConfig], dict[str, Any]]
    encoder_rules: Callable[[EncoderConfig], list[Rule]]
    classes: Callable[[EncoderConfig], tuple[PublishedClass, ...]]
    base_rules: tuple[Rule, ...]
    named_rules: tuple[Rule, ...]
    tied: frozenset[str]
    ignored: frozenset[str]
    special_tokens: Mapping[str, Literal["cls", "sep"]]

    def export_class(
        self, config: EncoderConfig, head_kind: str, names: Collection[str], pooling: str
    ) -> PublishedClass:
        """The class whose scores are those of a head, or the base class where there is none.

        Args:
            config: Of the encoder.
            head_kind: `Task.head_kind`.
            names: Of the head's tensors.
            pooling: How a sequence becomes one vector, where the head does that.
        """
        for candidate in self.classes(config):
            others = set(names) - candidate.names
            if (
                candidate.kind is not None
                and candidate.kind.name == head_kind
                and candidate.names <= set(names)
                and all(name.startswith(candidate.beside) for name in others)
                and (not candidate.poolings or pooling in candidate.poolings)
            ):
                return candidate
        return PublishedClass(
            BASE_SUFFIX, base_rules=tuple(rule for rule in self.base_rules if set(rule.ours) <= set(names))
        )

    def score_names(self, config: EncoderConfig) -> set[str]:
        """Returns the published names of the last linear layer of all classes that score labels or positions."""
        rules = [rule for each in self.classes(config) for rule in each.head_rules]
        return {name for rule in rules if rule.ours[0] in _SCORES for name in rule.theirs}

    def import_class(self, config: EncoderConfig, class_name: str) -> PublishedClass | None:
        """The class of a published model by its name (no name: that of pre-training); None: it is not known."""
        known = self.classes(config)
        return next((each for each in known if class_name.endswith(each.suffix)), None) if class_name else known[0]

    def import_rules(self, found: PublishedClass | None) -> list[Rule]:
        """Names of the heads of a published class, published ones without the prefix; those of the class come first."""
        if found is None:
            return list(self.named_rules)
        others = [rule for rule in self.named_rules if not found.names & set(rule.ours)]
        return [*found.base_rules, *found.head_rules, *others]


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
