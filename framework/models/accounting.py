"""Counts parameters and floating-point operations of an encoder from its config."""

from dataclasses import dataclass

from framework.models.config import EncoderConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts of an encoder without heads.

    Attributes:
        embeddings: Tables of words, positions and segments, and their norm.
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
    rows = config.vocab_size + config.type_vocab_size
    if config.position_encoding == "learned":
        rows += config.max_position_embeddings
    into_inner = 2 if config.gated else 1
    matrices = 4 * hidden * hidden + (into_inner + 1) * hidden * inner
    biases = 4 * hidden + into_inner * inner + hidden if config.bias else 0
    # Pre-norm: the first layer has no attention norm and a final norm follows the last one, so the sum is the same.
    norms = 2 * norm * config.num_layers
    return ParameterCounts(
        embeddings=rows * hidden + norm,
        layers=config.num_layers * (matrices + biases) + norms,
        matrices=config.num_layers * matrices,
    )


def training_flops_per_token(config: EncoderConfig, sequence_length: int, targets_per_token: float = 0.0) -> float:
    """Returns the floating-point operations of forward and backward for one token.

    Each matrix parameter takes 6 operations, and each attended token 12 x hidden in each layer (Chowdhery et al. 2022,
    "PaLM", arXiv:2204.02311, appendix B). Departures: embedding lookups do not count, a local layer attends to its
    window only, and the decoder over the vocabulary counts only for predicted tokens.

    Args:
        config: Encoder configuration.
        sequence_length: Mean number of tokens of a sequence.
        targets_per_token: Share of tokens whose word is predicted, in [0, 1].

    Returns:
        Operations per token. A multiplication and an addition count as two.
    """
    windows = (config.attention_window(index) for index in range(config.num_layers))
    seen = sum(sequence_length if window is None else min(sequence_length, window + 1) for window in windows)
    decoder = config.hidden_size * (config.hidden_size + config.vocab_size)
    matrices = count_parameters(config).matrices + targets_per_token * decoder
    return 6.0 * matrices + 12.0 * config.hidden_size * seen
