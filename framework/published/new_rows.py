"""Adds rows for new tokens to starting weights: embeddings, and the decoder of masked words.

A new row is the mean of the rows of the token's old pieces (Gee et al. 2022, "Fast Vocabulary Transfer", EMNLP
Industry, section 3). A token without pieces gets the mean of all words (Hewitt 2021, "Initializing New Word
Embeddings for Pretrained Language Models").
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from framework.published.pretrained import ROWS_OF_HEADS, PretrainedWeights

_WORDS = "embeddings.word_embeddings.weight"
_ROWS_OF_HEADS = (*ROWS_OF_HEADS, f"decoder.{_WORDS}")
"""Tensors of heads with a row or an element for each id."""


def with_new_rows(
    weights: PretrainedWeights, vocab_size: int, pieces: Mapping[int, Sequence[int]], words: Sequence[int]
) -> PretrainedWeights:
    """Returns weights with rows for all ids of an extended vocabulary.

    Args:
        weights: Weights to start from.
        vocab_size: Ids of the extended vocabulary. The weights keep spare rows beyond it.
        pieces: Ids of the old pieces, by id of the new token; empty for a token without pieces.
        words: Ids of all words of the old vocabulary.
    """
    rows = weights.config.vocab_size

    def extended(table: Tensor) -> Tensor:
        if len(table) != rows:  # a decoder with a vocabulary of its own
            return table
        padding = table.new_zeros(max(vocab_size - rows, 0), *table.shape[1:])
        longer = torch.cat([table, padding])
        mean_of_words = table[list(words)].mean(0)
        for token_id, ids in pieces.items():
            longer[token_id] = table[list(ids)].mean(0) if ids else mean_of_words
        return longer

    num_without = sum(not ids for ids in pieces.values())
    without = f", {num_without:,} without pieces start as the mean of all words" if num_without else ""
    return replace(
        weights,
        config=replace(weights.config, vocab_size=max(vocab_size, rows)),
        encoder={**weights.encoder, _WORDS: extended(weights.encoder[_WORDS])},
        heads={name: extended(tensor) if name in _ROWS_OF_HEADS else tensor for name, tensor in weights.heads.items()},
        changes=(
            *weights.changes,
            f"new tokens: {len(pieces):,}, their rows start as the mean of the rows of their old pieces{without}",
        ),
    )
