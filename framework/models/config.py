"""The shape of an encoder: every key of `conf/model/*.yaml` is a field here. No code that computes."""

import math
from dataclasses import dataclass, fields
from typing import get_args

from framework.errors import ConfigError

FAMILIES = ("bert", "roberta", "modernbert")
_CHOICES = {
    "family": FAMILIES,
    "position_encoding": ("learned", "rotary"),
    "norm_placement": ("post", "pre"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "output_initialization": ("normal", "scaled", "zero"),
}
_AT_MOST = {
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**20,
    "num_layers": 4096,
    "intermediate_size": 2**24,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**20,
}
"""Limits far beyond any encoder, so that a malicious config cannot exhaust the machine before weights are read."""
_AT_LEAST_ONE = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_position_embeddings")
_TYPE_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
_NOT_NEGATIVE = ("type_vocab_size", "position_offset", "pad_token_id")
_POSITIVE_NUMBERS = ("rope_theta_global", "rope_theta_local", "norm_eps")
_PROBABILITIES = ("hidden_dropout", "embedding_dropout", "attention_dropout")


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that decides an encoder's parameters and arithmetic.

    Attributes:
        family: The Hugging Face layout it is exported to: "bert", "roberta" or "modernbert".
        vocab_size: Rows of the word embeddings.
        hidden_size: Width of the encoder (`hidden`).
        num_layers: Transformer layers.
        num_heads: Attention heads; must divide hidden_size.
        intermediate_size: Width of the feed-forward block, after gating.
        max_position_embeddings: Tokens of the longest sequence, plus `position_offset` where positions are learned.
        type_vocab_size: Segments; 0 means no segment embeddings, 1 the same vector for all tokens (RoBERTa).
        position_encoding: "learned" (a table, added) or "rotary" (Su et al. 2021, applied to queries and keys).
        position_offset: First row of the learned table that is used (RoBERTa: 2).
        rope_theta_global: Base of the rotary frequencies in layers that attend to the whole sequence.
        rope_theta_local: The same in layers of local attention.
        local_attention_window: Tokens in all that a token of a local layer sees around itself (128: 64 on each side);
            None means that every layer attends to the whole sequence.
        global_attention_every: Layer i attends to the whole sequence when i is a multiple of this.
        norm_placement: "post" (norm after the residual sum, BERT) or "pre" (norm before each block, and a final norm).
        activation: Of the feed-forward block: "gelu" (erf), "gelu_tanh", "relu" or "silu".
        gated: Feed-forward is down(activation(gate(x)) * up(x)) (Shazeer 2020) instead of down(activation(up(x))).
        bias: The linear maps of attention and feed-forward have biases.
        norm_bias: The norms have biases.
        norm_eps: Added to the variance in norms.
        hidden_dropout: Dropout probability on the output of attention and of feed-forward.
        embedding_dropout: Dropout probability on the output of the embeddings.
        attention_dropout: Must be 0: packed attention kernels have no dropout on probabilities.
        initializer_range: Standard deviation of initial weights.
        output_initialization: Of the maps that write to the residual stream (attention.output, feed_forward.down):
            "normal", "scaled" (standard deviation divided by sqrt(2 * num_layers), Radford et al. 2019 section 2.3)
            or "zero".
        pad_token_id: Kept for exports; a packed batch holds no padding.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    position_encoding: str = "learned"
    position_offset: int = 0
    rope_theta_global: float = 160000.0
    rope_theta_local: float = 10000.0
    local_attention_window: int | None = None
    global_attention_every: int = 1
    norm_placement: str = "post"
    activation: str = "gelu"
    gated: bool = False
    bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    output_initialization: str = "normal"
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        """Checks each value and their combinations.

        Raises:
            ConfigError: A value has the wrong type or is out of range, or two values are incompatible.
        """
        self._check_types()
        self._check_values()
        self._check_combinations()

    def _check_types(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type) or (field.type,)
            accepted = (*kinds, int) if float in kinds else kinds
            is_right = isinstance(value, accepted) and (bool in kinds or not isinstance(value, bool))
            if not is_right or (isinstance(value, float) and not math.isfinite(value)):
                names = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
                raise ConfigError(f"model.{field.name}={value!r} is not {names}; give a value of that type.")

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                value, known = getattr(self, name), ", ".join(choices)
                raise ConfigError(f"model.{name}={value!r} is not known; choose one of {known}.")
        for names, holds, rule in (
            (_AT_LEAST_ONE, lambda value: value >= 1, "must be at least 1"),
            (_NOT_NEGATIVE, lambda value: value >= 0, "must not be negative"),
            (_POSITIVE_NUMBERS, lambda value: value > 0, "must be greater than 0"),
            (_PROBABILITIES, lambda value: 0 <= value < 1, "must be a probability below 1"),
        ):
            for name in names:
                value = getattr(self, name)
                if not holds(value):
                    raise ConfigError(f"model.{name}={value} {rule}; change it in conf/model or on the command line.")
        for name, limit in _AT_MOST.items():
            if getattr(self, name) > limit:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)} is more than {limit:,}, which no encoder needs; lower it."
                )
        if self.initializer_range < 0:
            raise ConfigError(f"model.initializer_range={self.initializer_range} must not be negative; 0.02 is usual.")

    def _check_combinations(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} does not divide model.hidden_size={self.hidden_size}; "
                "choose a number of heads that does."
            )
        if self.position_encoding == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"Rotary positions need an even head size, but hidden_size={self.hidden_size} / num_heads="
                f"{self.num_heads} gives {self.head_dim}; choose another model.num_heads."
            )
        if self.attention_dropout:
            raise ConfigError(
                f"model.attention_dropout={self.attention_dropout} cannot be had, since packed attention kernels have "
                "no dropout; set it to 0 and use model.hidden_dropout."
            )
        if self.position_offset >= self.max_position_embeddings:
            raise ConfigError(
                f"model.position_offset={self.position_offset} leaves no position free of "
                f"model.max_position_embeddings={self.max_position_embeddings}; make the table larger."
            )
        if self.global_attention_every < 1:
            raise ConfigError(
                f"model.global_attention_every={self.global_attention_every} must be at least 1; "
                "1 makes every layer global."
            )
        window = self.local_attention_window
        if window is not None and (window < 2 or window % 2):
            raise ConfigError(
                f"model.local_attention_window={window} must be an even number of tokens, half on each side; "
                "give one such, or null for global attention everywhere."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def max_sequence_length(self) -> int:
        """Tokens of the longest sequence that the positions allow."""
        return self.max_position_embeddings - self.position_offset

    def attention_window(self, layer: int) -> int | None:
        """Tokens that a token of this layer sees (half on each side); None where it sees the whole sequence."""
        return None if layer % self.global_attention_every == 0 else self.local_attention_window
