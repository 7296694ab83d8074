"""Encoder configuration: every key of `conf/model/*.yaml` is a field here."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from framework.errors import ConfigError, check_choice

FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "deberta-v2", "modernbert"),
    *("nomic_bert", "eurobert", "neobert"),
    *("vit", "clip", "siglip"),
)
_CHOICES = {
    "family": FAMILIES,
    "position_encoding": ("learned", "rotary", "none"),
    "norm_placement": ("post", "pre"),
    "norm": ("layer", "rms"),
    "relative_bias": ("none", "bucketed", "alibi", "disentangled"),
    "input_norm": ("embeddings", "first_layer", "both"),
    "patch_positions": ("factorised", "grid"),
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
    "output_initialization": ("normal", "scaled", "zero"),
}
_AT_MOST = {
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**20,
    "num_layers": 4096,
    "intermediate_size": 2**24,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**20,
    "patch_size": 2**10,
    "patch_grid": 2**10,
}
"""Limits far beyond any encoder, so that a malicious config cannot exhaust the machine before weights are read."""
_AT_LEAST_ONE = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_position_embeddings"),
    *("global_attention_every", "relative_distance"),
)
_TYPE_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
_OF_PICTURES = ("patch_size", "patch_grid", "patch_positions")
_OF_RELATIVE_BIAS = ("relative_bias", "relative_buckets", "relative_distance")
_NOT_NEGATIVE = (
    *("type_vocab_size", "position_offset", "pad_token_id", "initializer_range"),
    *("patch_size", "patch_grid"),
)
_POSITIVE_NUMBERS = ("rope_theta_global", "rope_theta_local", "norm_eps")
_PROBABILITIES = ("hidden_dropout", "embedding_dropout", "attention_dropout", "feed_forward_dropout")

PATCH_GRID = 64
"""Most rows and most columns of patches in a picture, by default."""


@dataclass(frozen=True)
class EncoderConfig:
    """Settings that decide the parameters and arithmetic of an encoder.

    Attributes:
        family: Hugging Face layout of exports, by its `model_type` there: one of `FAMILIES`.
        vocab_size: Rows of the word embeddings.
        hidden_size: Width of the encoder (`hidden`).
        num_layers: Number of Transformer layers.
        num_heads: Number of attention heads, a divisor of hidden_size.
        intermediate_size: Width of the feed-forward block, after gating.
        max_position_embeddings: Tokens of the longest sequence, plus `position_offset` if positions are learned.
        type_vocab_size: Number of segments. 0: no segment embeddings; 1: one vector for all tokens (RoBERTa).
        position_encoding: "learned" (an added table), "rotary" (Su et al. 2021, applied to queries and keys) or "none".
        position_offset: First row of the learned table that is used (RoBERTa: 2).
        embedding_size: Width of the embedding tables, which a linear layer projects to hidden_size (ELECTRA); None:
            hidden_size, without a projection.
        relative_bias: Term that is added to attention scores by the distance of two tokens: "none", "bucketed" (a
            learned number for each head and bucket of distances, shared by all layers: MPNet), "alibi" (a
            fixed slope for each head: MosaicBERT; no class of transformers has it) or "disentangled" (a learned vector
            for each bucket, which every layer multiplies with its queries and keys: DeBERTa).
        relative_buckets: Number of buckets, half of them for each direction.
        relative_distance: Distance in tokens from which on all distances share the last bucket.
        rope_theta_global: Base of the rotary frequencies in layers that attend to the whole sequence.
        rope_theta_local: Base of the rotary frequencies in layers with local attention.
        local_attention_window: Size of the attention window of local layers in tokens (128: 64 on each side); None:
            every layer attends to the whole sequence.
        global_attention_every: Layer i attends to the whole sequence if i is a multiple of this number.
        norm_placement: "post" (norm after the residual sum, BERT) or "pre" (norm before each block, and a final norm).
        input_norm: Norms between the sums of embeddings and the first attention: "embeddings" (on the embeddings, which
            the residual stream then carries), "first_layer" (in the first layer's branch, ViT) or "both" (CLIP). The
            last two require pre-norm.
        norm: "layer" (layer norm) or "rms" (division by the root mean square; norm_bias must be False).
        activation: Activation of the feed-forward block: "gelu" (erf), "gelu_tanh", "quick_gelu" (CLIP), "relu" or
            "silu".
        gated: True: feed-forward is down(activation(gate(x)) * up(x)) (Shazeer 2020), else down(activation(up(x))).
        bias: Adds biases to the linear layers of attention and feed-forward.
        norm_bias: Adds biases to the norms.
        norm_eps: Constant added to the variance in norms.
        hidden_dropout: Dropout probability on the output of attention and of feed-forward.
        feed_forward_dropout: Dropout probability on the output of feed-forward; None: hidden_dropout. ModernBERT's
            pre-training has 0, which leaves the dropout after attention only.
        embedding_dropout: Dropout probability on the output of the embeddings.
        attention_dropout: Must be 0, because packed attention kernels have no dropout on probabilities.
        initializer_range: Standard deviation of initial weights.
        output_initialization: Rule for layers that write to the residual stream (attention.output,
            feed_forward.down): "normal", "scaled" (standard deviation divided by sqrt(2 * num_layers), Radford et al.
            2019, section 2.3) or "zero".
        pad_token_id: Id for exports; packed batches contain no padding.
        patch_size: Edge of a patch of a picture in pixels; 0: the encoder reads no pictures. The task sets it.
        patch_grid: Most rows and most columns of patches in a picture, which have a position embedding each; 0: patches
            have no positions. Unused if `patch_size` is 0. With positions from a grid, its rows and columns.
        patch_positions: "factorised" (a table of rows and one of columns, for any aspect ratio) or "grid" (a table of a
            square grid, interpolated for others, as published towers have).
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
    input_norm: str = "embeddings"
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
    patch_size: int = 0
    patch_grid: int = PATCH_GRID
    norm: str = "layer"
    embedding_size: int | None = None
    relative_bias: str = "none"
    relative_buckets: int = 32
    relative_distance: int = 128
    patch_positions: str = "factorised"
    feed_forward_dropout: float | None = None

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
                raise ConfigError(f"model.{field.name} is {value!r}. It must be {names}. Give a value of that type.")

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(f"model.{name}", getattr(self, name), choices)
        for names, holds, rule in (
            (_AT_LEAST_ONE, lambda value: value >= 1, "must be at least 1"),
            (_NOT_NEGATIVE, lambda value: value >= 0, "must not be negative"),
            (_POSITIVE_NUMBERS, lambda value: value > 0, "must be greater than 0"),
            (_PROBABILITIES, lambda value: 0 <= value < 1, "must be a probability below 1"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise ConfigError(
                        f"model.{name} is {value}. It {rule}. Change it in conf/model or on the command line."
                    )
        for name, limit in _AT_MOST.items():
            if getattr(self, name) > limit:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}. It must not exceed {limit:,}. Choose a smaller value."
                )

    def _check_combinations(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.num_heads is {self.num_heads}, which does not divide model.hidden_size {self.hidden_size}. "
                "Choose a divisor."
            )
        if self.position_encoding == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"The head size is {self.head_dim} (model.hidden_size {self.hidden_size} / model.num_heads "
                f"{self.num_heads}). Rotary positions require an even head size. Choose another model.num_heads."
            )
        if self.input_norm != "embeddings" and self.norm_placement == "post":
            raise ConfigError(
                f"model.input_norm is {self.input_norm!r}, but model.norm_placement is post. A norm before the first "
                "layer's attention requires pre-norm. Set model.norm_placement=pre or model.input_norm=embeddings."
            )
        if self.attention_dropout:
            raise ConfigError(
                f"model.attention_dropout is {self.attention_dropout}. Packed attention kernels have no dropout. Set "
                "it to 0, and use model.hidden_dropout."
            )
        if self.position_offset >= self.max_position_embeddings:
            raise ConfigError(
                f"model.position_offset is {self.position_offset}. It must be smaller than "
                f"model.max_position_embeddings, which is {self.max_position_embeddings}. Enlarge the table."
            )
        if not 1 <= self.table_size <= _AT_MOST["hidden_size"]:
            raise ConfigError(
                f"model.embedding_size is {self.embedding_size}. It must be a width from 1 to "
                f"{_AT_MOST['hidden_size']:,}. Change it, or set it to null for tables of the width of the encoder."
            )
        if self.norm == "rms" and self.norm_bias:
            raise ConfigError(
                "model.norm is 'rms' and model.norm_bias is True. An RMS norm has no bias. Set model.norm_bias to "
                "false."
            )
        if self.relative_bias != "none":
            self._check_relative_bias()
        window = self.local_attention_window
        if window is not None and (window < 2 or window % 2):
            raise ConfigError(
                f"model.local_attention_window is {window}. It must be an even number of tokens, half on each side. "
                "Choose an even number, or null for global attention in all layers."
            )

    def record(self) -> dict[str, Any]:
        """Returns the settings that runs and exports record; without those of parts that the encoder lacks."""
        left_out = (
            *(() if self.patch_size else _OF_PICTURES),
            *(() if self.relative_bias != "none" else _OF_RELATIVE_BIAS),
            *(() if self.embedding_size is not None else ("embedding_size",)),
            *(() if self.input_norm != "embeddings" else ("input_norm",)),
            *(() if self.norm != "layer" else ("norm",)),
            *(() if self.feed_forward_dropout is not None else ("feed_forward_dropout",)),
        )
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def _check_relative_bias(self) -> None:
        if self.local_attention_window is not None or self.position_encoding == "rotary":
            raise ConfigError(
                f"model.relative_bias is {self.relative_bias!r}, model.local_attention_window is "
                f"{self.local_attention_window} and model.position_encoding is {self.position_encoding!r}. A relative "
                "bias requires attention to the whole sequence without rotation. Set model.local_attention_window to "
                "null and model.position_encoding to learned."
            )
        if (
            self.relative_buckets < 4
            or self.relative_buckets % 4
            or self.relative_distance <= self.relative_buckets // 4
        ):
            raise ConfigError(
                f"model.relative_buckets is {self.relative_buckets} and model.relative_distance is "
                f"{self.relative_distance}. The buckets must be a multiple of 4, and the distance must exceed a "
                "quarter of them. Change one of them."
            )

    @property
    def table_size(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def head_dim(self) -> int:
        """Number of channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def max_sequence_length(self) -> int:
        """Number of tokens of the longest sequence that the positions allow."""
        return self.max_position_embeddings - self.position_offset

    def attention_window(self, layer: int) -> int | None:
        """Returns the window of a layer in tokens (half on each side); None for global attention."""
        return None if layer % self.global_attention_every == 0 else self.local_attention_window
