"""Head of images and texts: pooled vectors, and the temperature and bias of the loss, which are learned."""

import math

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.tasks.embedding.head import EmbeddingHead
from framework.tasks.pooling import Pooling

_MAX_LOG_SCALE = math.log(100.0)
"""Largest logarithm of the scale, against instability (Radford et al. 2021, "CLIP", section 2.5)."""


class ImageTextHead(EmbeddingHead):
    """Pooling, and two numbers that turn a cosine into a score: `scale * cosine + bias`.

    The parameters are differences from the initial values, so that they start at 0 like every bias. The outputs repeat
    the numbers for every sequence, because a loss over a whole step reads only rows of outputs
    (`framework.tasks.step_level`).

    Args:
        pooling: Pooling function of `framework.tasks.pooling`.
        normalizes: Scale embeddings to length 1.
        initial_scale: Scale at the start of training, the reciprocal of the temperature.
        initial_bias: Bias at the start of training; None: scores have no bias.
    """

    def __init__(self, pooling: Pooling, normalizes: bool, initial_scale: float, initial_bias: float | None) -> None:
        super().__init__(pooling, normalizes)
        self.initial_scale = initial_scale
        self.initial_bias = initial_bias
        # One element each, because FSDP2 cannot shard scalars.
        self.scale_bias = nn.Parameter(torch.zeros(1))
        self.score_bias = None if initial_bias is None else nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes one vector per sequence.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch with the offsets of the sequences.
            dropout_keys: Unused.

        Returns:
            `embeddings` (sequences, hidden) fp32; `scales` and, with a bias, `biases` (sequences,) fp32, the same for
            all sequences.
        """
        outputs = super().forward(hidden_states, batch, dropout_keys)
        size = outputs["embeddings"].shape[:1]
        log_scale = self.scale_bias.float() + math.log(self.initial_scale)
        outputs["scales"] = log_scale.clamp(max=_MAX_LOG_SCALE).exp().expand(size)
        if self.score_bias is not None and self.initial_bias is not None:
            outputs["biases"] = (self.score_bias.float() + self.initial_bias).expand(size)
        return outputs
