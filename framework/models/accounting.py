"""Counts parameters and floating-point operations of an encoder from its config."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework.models.config import EncoderConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts of an encoder without heads.

    Attributes:
        embeddings: Tables of words, positions, segments and relative positions, patch embeddings, their norm and
            projection.
        layers: All layers and, with pre-norm, the final norm.
        matrices: Weights of the linear layers in `layers`, each used once per token.
    """

    embeddings: int
    layers: int
    matrices: int

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.embeddings + self.layers


def count_parameters(config: EncoderConfig) -> ParameterCounts:
    """Counts the parameters of the encoder that a config describes."""
    hidden, inner = config.hidden_size, config.intermediate_size
    norm = hidden * (2 if config.norm_bias else 1)
    width = config.table_size
    rows = config.vocab_size + config.type_vocab_size
    if config.patch_size:
        grid = config.patch_grid
        rows += 3 * config.patch_size**2 + 1 + (grid * grid if config.patch_positions == "grid" else 2 * grid)
    if config.position_encoding == "learned":
        rows += config.max_position_embeddings
    into_inner = 2 if config.gated else 1
    matrices = 4 * hidden * hidden + (into_inner + 1) * hidden * inner
    biases = 4 * hidden + into_inner * inner + hidden if config.bias else 0
    # Pre-norm: the first layer may have no attention norm, and a final norm follows the last one.
    norms = 2 * norm * config.num_layers + (norm if config.input_norm != "embeddings" else 0)
    tables = rows * width
    if config.input_norm != "first_layer":
        tables += width * (2 if config.norm_bias else 1)
    if width != hidden:
        tables += (width + 1) * hidden
    if config.relative_bias == "bucketed":
        tables += config.relative_buckets * config.num_heads
    if config.relative_bias == "disentangled":
        tables += config.relative_buckets * hidden + norm
    return ParameterCounts(
        embeddings=tables,
        layers=config.num_layers * (matrices + biases) + norms,
        matrices=config.num_layers * matrices,
    )


def training_flops(config: EncoderConfig, lengths: Sequence[int], num_predicted: float = 0.0) -> float:
    """Returns the floating-point operations of forward and backward over sequences.

    Each matrix parameter takes 6 operations per token, and each pair of tokens that attend takes 12 x hidden in each
    layer (Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B). Departures: embedding lookups do not count, a
    token of a local layer attends to its window only, and the decoder over the vocabulary counts only for predicted
    tokens. Other heads do not count.

    Args:
        config: Encoder configuration.
        lengths: Number of tokens of each sequence.
        num_predicted: Number of tokens whose word is predicted.

    Returns:
        Operations. A multiplication and an addition count as two.
    """
    tokens = np.array(lengths, dtype=np.float64)
    windows = Counter(config.attention_window(index) for index in range(config.num_layers))
    num_pairs = sum(
        num_layers * float((tokens * (tokens if window is None else np.minimum(tokens, window + 1))).sum())
        for window, num_layers in windows.items()
    )
    decoder = config.table_size * (config.hidden_size + config.vocab_size)
    matrices = count_parameters(config).matrices * float(tokens.sum()) + decoder * num_predicted
    return 6.0 * matrices + 12.0 * config.hidden_size * num_pairs
