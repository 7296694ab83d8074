"""MaxSim between texts with a vector for each token, over ragged numbers of tokens, in blocks of bounded memory."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_QUERY_TOKENS, _DOCUMENT_TOKENS = 2048, 8192
"""Largest numbers of padded tokens of a block, whose products are in memory at the same time: 64 MiB in fp32."""


def max_sim(vectors: Tensor, lengths: Tensor, queries: Tensor, documents: Tensor) -> Tensor:
    """Scores queries with documents: the sum over the tokens of a query of the largest product with a document token.

    Khattab and Zaharia 2020 (ColBERT, arXiv:2004.12832, equation 3). The backward pass computes each block again, so
    that no product of a block is kept. The call waits for the device.

    Args:
        vectors: (tokens, width) fp32 vectors of all texts, end to end.
        lengths: (texts,) int64 number of tokens of each text, at least 1.
        queries: (queries,) int64 indices of the texts that are queries.
        documents: (documents,) int64 indices of the texts that are documents.

    Returns:
        (queries, documents) fp32.
    """
    starts = lengths.cumsum(0) - lengths
    sides = []
    for texts, most_tokens in ((queries, _QUERY_TOKENS), (documents, _DOCUMENT_TOKENS)):
        # Texts of similar lengths share a block, so that blocks have little padding.
        order = lengths[texts].argsort(stable=True)
        sorted_texts = texts[order]
        blocks = [*_blocks(vectors, starts[sorted_texts], lengths[sorted_texts], most_tokens)]
        sides.append((blocks, order.argsort()))
    (query_blocks, query_places), (document_blocks, document_places) = sides
    if not query_blocks or not document_blocks:
        return vectors.new_zeros(len(queries), len(documents)) + vectors.sum() * 0.0
    rows = [
        torch.cat(
            [
                checkpoint(_block_scores, query, document, is_token, use_reentrant=False, preserve_rng_state=False)
                for document, is_token in document_blocks
            ],
            dim=1,
        )
        for query, _ in query_blocks
    ]
    return torch.cat(rows)[query_places][:, document_places]


def _blocks(vectors: Tensor, starts: Tensor, lengths: Tensor, most_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields blocks of texts with ascending lengths: (texts, longest, width) with zeros as padding, (texts, longest).

    The bool tensor is True for tokens. Each block is cut from the vectors of its own texts, because the gradient of a
    selection is as large as the tensor from which it selects.
    """
    within = torch.arange(int(lengths.sum()), device=vectors.device)
    tokens = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths) + within
    sizes = lengths.tolist()
    cuts = [0]
    for index, size in enumerate(sizes):
        if index > cuts[-1] and (index + 1 - cuts[-1]) * size > most_tokens:
            cuts.append(index)
    bounds = [*zip(cuts, [*cuts[1:], len(sizes)], strict=True)] if sizes else []
    parts = vectors.index_select(0, tokens).split([sum(sizes[first:last]) for first, last in bounds])
    for part, (first, last) in zip(parts, bounds, strict=True):
        own = lengths[first:last]
        offsets = torch.arange(sizes[last - 1], device=vectors.device)
        is_token = offsets < own[:, None]
        # Padding selects a row of zeros that follows the vectors.
        indices = torch.where(is_token, (own.cumsum(0) - own)[:, None] + offsets, len(part))
        padded = nn.functional.pad(part, (0, 0, 0, 1)).index_select(0, indices.flatten())
        yield padded.unflatten(0, tuple(indices.shape)), is_token


def _block_scores(queries: Tensor, documents: Tensor, is_token: Tensor) -> Tensor:
    """Returns (queries, documents) scores; padding of queries has zeros as vectors, and adds 0 to a score."""
    products = (queries.flatten(0, 1) @ documents.flatten(0, 1).T).unflatten(1, tuple(is_token.shape))
    best = products.masked_fill(~is_token, -torch.inf).max(dim=2).values
    return best.unflatten(0, (len(queries), -1)).sum(dim=1)
