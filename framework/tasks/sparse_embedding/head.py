"""Sparse head: the scores of masked words, reduced to one weight per word and text."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.pretraining.head import build_pretraining_head

_TOKENS = 512
"""Number of tokens from which on a block ends. The scores of a block are in memory at the same time."""


class SparseHead(nn.Module):
    """log(1 + relu(max over the tokens of a text of the score of a word)): SPLADE-max.

    Formal et al. 2021 (arXiv:2109.10086, equation 2). The logarithm follows the maximum, which gives the same value.
    The scores of all words take much memory, so they are computed in blocks of texts, and again in the backward pass.

    Args:
        encoder: Encoder whose word embeddings the decoder shares.
        config: Encoder configuration.
    """

    def __init__(self, encoder: TransformerEncoder, config: EncoderConfig) -> None:
        super().__init__()
        self.mlm = build_pretraining_head(encoder, config, nsp=False).mlm

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes one weight per word and text.

        Args:
            hidden_states: (tokens, hidden).
            batch: Micro-batch with the lengths of the sequences.
            dropout_keys: Unused, because the head has no dropout.

        Returns:
            `weights` (sequences, vocab) fp32, at least 0.
        """
        blocks: list[list[int]] = [[]]
        for length in batch.lengths:
            if sum(blocks[-1]) >= _TOKENS:
                blocks.append([])
            blocks[-1].append(length)
        parts = hidden_states.split([sum(block) for block in blocks])
        best = [
            checkpoint(self._largest_scores, part, block, use_reentrant=False, preserve_rng_state=False)
            for part, block in zip(parts, blocks, strict=True)
        ]
        return {"weights": torch.cat(best).relu().log1p()}

    def _largest_scores(self, hidden_states: Tensor, lengths: list[int]) -> Tensor:
        """Returns (texts, vocab) fp32, the largest score of each word over the tokens of each text."""
        scores = self.mlm(hidden_states)
        return torch.stack([text.amax(dim=0) for text in scores.split(lengths)]).float()
