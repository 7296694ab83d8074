"""Exact search for the nearest vectors, in blocks: memory does not grow with the number of documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

QUERIES_AT_ONCE = 256
"""Number of queries of a block."""

DOCUMENTS_AT_ONCE = 8192
"""Number of documents of a block; a block has 8 MiB of scores."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """Documents with the largest scores for each query, best first. Documents with equal scores keep their order.

    Attributes:
        indices: (queries, k) int64, index of the document; -1 if there are fewer than k documents.
        scores: (queries, k) fp32, its score; -inf if there is none.
    """

    indices: np.ndarray
    scores: np.ndarray


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1, so that products are cosines: (rows, hidden) fp32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)


def nearest(
    queries: np.ndarray, shards: Sequence[np.ndarray], k: int, device: torch.device | str = "cpu"
) -> Nearest:
    """Finds the k documents with the largest products for each query.

    The result depends only on the arguments. Each shard is read once, and one block of it is on the device at a time.

    Args:
        queries: (queries, hidden) fp32.
        shards: Vectors of the documents, (documents, hidden) fp32 each, for example memory maps of files.
        k: Number of documents for each query.
        device: Device of the products.
    """
    blocks = [
        torch.from_numpy(queries[first : first + QUERIES_AT_ONCE]).to(device)
        for first in range(0, len(queries), QUERIES_AT_ONCE)
    ]
    best = [_Best(block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)) for block in blocks]
    for first, documents in _blocks_of(shards):
        transposed = torch.from_numpy(documents).to(device).T
        best = [_merged(each, block @ transposed, first, k) for each, block in zip(best, blocks, strict=True)]
    shape = (len(queries), k)
    indices, scores = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
    for number, each in enumerate(best):
        rows, found = slice(number * QUERIES_AT_ONCE, (number + 1) * QUERIES_AT_ONCE), each.indices.shape[1]
        indices[rows, :found], scores[rows, :found] = each.indices.numpy(), each.scores.cpu().numpy()
    return Nearest(indices, scores)


@dataclass(frozen=True, eq=False)
class _Best:
    """Best documents of a block of queries so far: (queries, at most k) scores on the device and indices on the host."""

    scores: Tensor
    indices: Tensor


def _blocks_of(shards: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the index of the first document of each block, and the block in memory."""
    before = 0
    for shard in shards:
        for first in range(0, len(shard), DOCUMENTS_AT_ONCE):
            # A copy, because torch warns about memory maps that are read-only.
            yield before + first, np.array(shard[first : first + DOCUMENTS_AT_ONCE], dtype=np.float32)
        before += len(shard)


def _merged(best: _Best, scores: Tensor, first: int, k: int) -> _Best:
    """Adds a block of documents, whose indices are larger than those of `best`.

    Args:
        best: Best documents before this block.
        scores: (queries, documents) scores of the block.
        first: Index of its first document.
        k: Number of documents to keep.
    """
    columns = _top_columns(scores, k)
    joined = torch.cat([best.scores, scores.gather(1, columns)], dim=1)
    order = joined.argsort(dim=1, descending=True, stable=True)[:, :k]
    indices = torch.cat([best.indices, columns.cpu() + first], dim=1)
    return _Best(joined.gather(1, order), indices.gather(1, order.cpu()))


def _top_columns(scores: Tensor, k: int) -> Tensor:
    """Returns (queries, at most k) columns of the largest scores, in ascending order; of equal ones the first."""
    if k >= scores.shape[1]:
        return torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
    values, columns = scores.topk(k, dim=1, sorted=False)
    # topk chooses any of several columns with the smallest score that it keeps.
    is_tied = (scores >= values.amin(dim=1, keepdim=True)).sum(dim=1) > k
    for row in is_tied.nonzero()[:, 0].tolist():
        columns[row] = scores[row].argsort(descending=True, stable=True)[:k]
    return columns.sort(dim=1).values
