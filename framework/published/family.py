"""Description of a family of published models. `framework.published.families` lists all of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.published.kinds import HeadKind
from framework.published.rules import Rule

# Our activation for each published name. If several published names have one formula, exports use the last of them.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
}
_PUBLISHED_ACTIVATIONS = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}

_PLAIN: dict[str, Any] = {"embedding_size": None, "relative_bias": "none", "norm": "layer", "input_norm": "embeddings"}
"""Values that an encoder has in every family that does not state others."""

BASE_SUFFIX = "Model"
_SCORES = ("classifier.weight", "qa_outputs.weight")
"""Our names for the last linear layer of heads that score labels, choices and positions."""

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
"""Keys of config.json by EncoderConfig field, for values that are the same in every family."""


@dataclass(frozen=True)
class PublishedClass:
    """A class of transformers, with the rules that convert the tensors of its head.

    Attributes:
        suffix: Class name without the family's prefix ("ForTokenClassification").
        kind: Kind of its head; None for the base class, which has no head.
        base_rules: Rules for tensors of the head that the class keeps in its base model (the pooler).
        head_rules: Rules for tensors of the head outside the base model.
        poolings: Poolings that the class supports, the default first; empty if it does not pool.
        pooling_key: Key of config.json that names the pooling; None if the class supports only one.
        pooling_names: Values of that key by our name of the pooling; empty if they are the same. A head with another
            value is not read.
        extra_prefixes: Name prefixes of further tensors that an exported head may have. The scores of the class do not
            depend on them.
    """

    suffix: str
    kind: HeadKind | None = None
    base_rules: tuple[Rule, ...] = ()
    head_rules: tuple[Rule, ...] = ()
    poolings: tuple[str, ...] = ()
    pooling_key: str | None = None
    pooling_names: Mapping[str, str] = field(default_factory=dict)
    extra_prefixes: tuple[str, ...] = ()

    def read_pooling(self, published: Mapping[str, Any]) -> str | None:
        """Returns our name of the pooling in config.json; None if Cloze lacks it."""
        if not self.pooling_names:
            return str(published.get(self.pooling_key or "", self.poolings[0]))
        ours = {theirs: name for name, theirs in self.pooling_names.items()}
        return ours.get(str(published.get(self.pooling_key or "")))

    @property
    def names(self) -> frozenset[str]:
        """Returns our names for the tensors of the head that the class holds."""
        return frozenset(name for rule in (*self.base_rules, *self.head_rules) for name in rule.ours)


@dataclass(frozen=True)
class Family:
    """One family of published models.

    Attributes:
        prefix: Name prefix of the base model's tensors inside a model with a head ("bert.").
        class_prefix: Prefix of class names ("Bert").
        read_config: Converts config.json to EncoderConfig; raises CheckpointError if Cloze does not support a setting.
        write_config: Converts EncoderConfig to config.json; raises CheckpointError if the class does not support a
            setting.
        encoder_rules: Returns the rules for the encoder. Published names lack the prefix.
        classes: Returns the classes with heads. If two classes support the same head, the more complete one is first.
        base_rules: Rules for tensors of heads that the base class can hold.
        named_rules: Rules for tensors of heads whose published names are unambiguous across classes.
        tied: Published tensors that repeat the word embeddings.
        ignored: Published tensors that hold no information of their own.
        special_tokens: Keys of config.json for special token ids other than padding, each with its token.
        older_rules: Returns rules for the names of older folders, which are only read. Published names lack the prefix.
        has_class: False if transformers has no class for the family, so that no class of Cloze can wrap one.
        older_prefixes: Prefixes of the base model's tensors in older folders.
        pooler_activation: Activation between the dense layer of a pooled vector and the classifier.
        transform_activation: Activation of the transform before the decoder over the vocabulary; None: that of the
            encoder.
        transform_has_bias: True if the dense layer of the transform has a bias although the encoder has none.
        ties_decoder: True if the decoder over the vocabulary shares the word embeddings and follows the transform;
            False: it is one linear layer with a weight of its own, without a transform (EuroBERT, NeoBERT).
        decoder_has_bias: True if such a decoder has a bias although the encoder has none.
        transforms_scores: True if this transform also precedes the scores of every other head (ModernBERT).
        counts_after_padding: True if positions are counted from the id after the padding id (RoBERTa).
        pixels: For vision towers the mean and the standard deviation of pixels in [0, 1] by channel, by which pictures
            are normalised unless the folder states others; None: the family reads words.
        before_writing: Function that moves encoder tensors between parameters, so that the class holds all of them.
        wrap_config: Function from the config.json of the encoder with a head to that of a class that contains it.
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
    older_rules: Callable[[EncoderConfig], list[Rule]] = lambda _config: []
    has_class: bool = True
    older_prefixes: tuple[str, ...] = ()
    pooler_activation: str = "tanh"
    transform_activation: str | None = None
    transform_has_bias: bool = False
    ties_decoder: bool = True
    decoder_has_bias: bool = False
    transforms_scores: bool = False
    counts_after_padding: bool = False
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    before_writing: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    wrap_config: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def export_class(
        self, config: EncoderConfig, head_kind: str, names: Collection[str], pooling: str
    ) -> PublishedClass:
        """Returns the class that computes the same scores as a head, or the base class if there is none.

        Args:
            config: Encoder configuration.
            head_kind: `Task.head_kind`.
            names: Names of the head's tensors.
            pooling: Pooling of a sequence to one vector, for heads that pool.
        """
        for candidate in self.classes(config):
            others = set(names) - candidate.names
            if (
                candidate.kind is not None
                and candidate.kind.name == head_kind
                and candidate.names <= set(names)
                and all(name.startswith(candidate.extra_prefixes) for name in others)
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
        """Returns the class with this name (the pre-training class for an empty name); None if it is unknown."""
        known = self.classes(config)
        return next((each for each in known if class_name.endswith(each.suffix)), None) if class_name else known[0]

    def import_rules(self, published_class: PublishedClass | None) -> list[Rule]:
        """Returns the rules for heads of a published class, its own rules first. Published names lack the prefix."""
        if published_class is None:
            return list(self.named_rules)
        others = [rule for rule in self.named_rules if not published_class.names & set(rule.ours)]
        return [*published_class.base_rules, *published_class.head_rules, *others]


def read_fields(published: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Returns the EncoderConfig fields whose values config.json holds unchanged."""
    return {ours: published[theirs] for ours, theirs in fields.items()}


def write_fields(config: EncoderConfig, fields: Mapping[str, str]) -> dict[str, Any]:
    """Returns keys of config.json: the inverse of `read_fields`."""
    return {theirs: getattr(config, ours) for ours, theirs in fields.items()}


def read_activation(published: str) -> str:
    """Returns our name for a published activation.

    Raises:
        CheckpointError: The encoder does not support the activation.
    """
    if published not in _ACTIVATIONS:
        raise CheckpointError(f"The activation {published!r} is not known. Known ones are {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[published]


def write_activation(ours: str) -> str:
    """Returns the published name of our activation."""
    return _PUBLISHED_ACTIVATIONS[ours]


def read_theta(published: Mapping[str, Any], default: float) -> float:
    """Returns the rotary base of all layers, from the keys of transformers 5 or of earlier versions.

    Raises:
        CheckpointError: The positions are scaled or extended in a way that Cloze lacks.
    """
    parameters = published.get("rope_parameters") or published.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise CheckpointError(
            f"rope_type={kind!r} is unknown. Only 'default' rotary positions can be read. Choose another model."
        )
    return parameters.get("rope_theta", published.get("rope_theta", default))


def check_expressible(config: EncoderConfig, needed: Mapping[str, Any]) -> None:
    """Checks that a config has the values that are fixed in the published classes of its family (also `_PLAIN`).

    Raises:
        CheckpointError: They differ; the message names each difference.
    """
    needed = _PLAIN | dict(needed)
    different = [name for name, value in needed.items() if getattr(config, name) != value]
    if different:
        actual = ", ".join(f"model.{name}={getattr(config, name)!r}" for name in different)
        required = ", ".join(f"{name}={needed[name]!r}" for name in different)
        raise CheckpointError(
            f"An encoder with {actual} has no class in Hugging Face transformers. Family {config.family!r} always has "
            f"{required} there. Export an encoder with these values, or one of another family."
        )
