"""Exact search for the nearest vectors, in blocks: memory does not grow with the number of documents."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

QUERIES_AT_ONCE = 256
"""Number of queries of a block."""

DOCUMENTS_AT_ONCE = 8192
"""Number of documents of a block; a block has 8 MiB of scores."""


BlockScores = Callable[[slice], Tensor]
"""Function from a range of queries to their (queries, documents) scores with the documents of one block."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """Documents with the largest scores for each query, best first. Documents with equal scores keep their order.

    Attributes:
        indices: (queries, k) int64, index of the document; -1 if there are fewer than k documents.
        scores: (queries, k) float64, its score; -inf if there is none.
    """

    indices: np.ndarray
    scores: np.ndarray


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1, so that products are cosines: (rows, hidden) fp32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)


def nearest(
    queries: np.ndarray,
    documents: np.ndarray,
    k: int,
    device: torch.device | str = "cpu",
    advance: Callable[[int, int], None] | None = None,
) -> Nearest:
    """Finds the k documents with the largest products for each query.

    The documents are read once, and one block of them is on the device at a time.

    Args:
        queries: (queries, hidden) fp32.
        documents: (documents, hidden) fp32, for example the memory map of a file.
        k: Number of documents for each query.
        device: Device of the products.
        advance: Callback for the number of documents that are searched, and of all; None: no callback.
    """
    rows = torch.from_numpy(queries).to(device)

    def blocks() -> Iterator[tuple[int, BlockScores]]:
        for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
            # A copy, because torch warns about memory maps that are read-only.
            block = np.array(documents[first : first + DOCUMENTS_AT_ONCE], dtype=np.float32)
            transposed = torch.from_numpy(block).to(device).T
            yield first, lambda part: rows[part] @ transposed  # noqa: B023  used before the next block
            if advance is not None:
                advance(first + len(block), len(documents))

    return search(len(queries), blocks(), k)


def search(num_queries: int, blocks: Iterable[tuple[int, BlockScores]], k: int) -> Nearest:
    """Finds the k documents with the largest scores for each query.

    Args:
        num_queries: Number of queries.
        blocks: Index of the first document and scores of each block, in the order of the documents.
        k: Number of documents for each query.
    """
    parts = [slice(first, first + QUERIES_AT_ONCE) for first in range(0, num_queries, QUERIES_AT_ONCE)]
    best: list[_Best | None] = [None] * len(parts)
    for first, scores_of in blocks:
        best = [_merged(own, scores_of(part), first, k) for own, part in zip(best, parts, strict=True)]
    indices, scores = np.full((num_queries, k), -1, dtype=np.int64), np.full((num_queries, k), -np.inf)
    for part, own in zip(parts, best, strict=True):
        if own is not None:
            found = own.indices.shape[1]
            indices[part, :found], scores[part, :found] = own.indices.numpy(), own.scores.cpu().numpy()
    return Nearest(indices, scores)


@dataclass(frozen=True, eq=False)
class _Best:
    """Best documents of a block of queries so far: (queries, found) scores on the device, indices on the host."""

    scores: Tensor
    indices: Tensor


def _merged(best: _Best | None, scores: Tensor, first: int, k: int) -> _Best:
    """Adds a block of documents, whose indices are larger than those of `best`.

    Args:
        best: Best documents before this block; None: it is the first.
        scores: (queries, documents) scores of the block.
        first: Index of its first document.
        k: Number of documents to keep.
    """
    columns = _top_columns(scores, k)
    joined, indices = scores.gather(1, columns), columns.cpu() + first
    if best is not None:
        joined, indices = torch.cat([best.scores, joined], dim=1), torch.cat([best.indices, indices], dim=1)
    order = joined.argsort(dim=1, descending=True, stable=True)[:, :k]
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
