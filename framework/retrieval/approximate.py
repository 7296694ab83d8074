"""Approximate search with faiss (Johnson et al. 2017, arXiv:1702.08734): an inverted file of cells of documents."""

from pathlib import Path
from typing import Any

import numpy as np

from framework.errors import ConfigError
from framework.retrieval.search import DOCUMENTS_AT_ONCE, Nearest

_TRAINED_PER_CELL = 64
_SEARCHED_SHARE = 16
_SEED = 1234


def import_faiss() -> Any:
    """Imports faiss.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "`index` is faiss, which is not installed. Install it with `pip install -e '.[faiss]'`, or use index=exact."
        ) from error
    return faiss


def build_index(documents: np.ndarray, path: Path) -> None:
    """Builds an index of the documents and writes it to a file.

    The cells are k-means of a sample. There are about 4 sqrt(documents) of them. The index has all vectors in memory.

    Args:
        documents: (documents, hidden) fp32, with rows of length 1.
        path: File to write.
    """
    faiss = import_faiss()
    num_documents, width = documents.shape
    num_cells = max(1, min(int(4 * num_documents**0.5), num_documents // 39))
    stride = max(1, num_documents // (num_cells * _TRAINED_PER_CELL))
    sample = np.array(documents[::stride], dtype=np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = _SEED
    index.train(sample)
    for first in range(0, num_documents, DOCUMENTS_AT_ONCE):
        index.add(np.array(documents[first : first + DOCUMENTS_AT_ONCE], dtype=np.float32))
    index.nprobe = max(1, num_cells // _SEARCHED_SHARE)
    faiss.write_index(index, str(path))


def search_index(path: Path, queries: np.ndarray, k: int) -> Nearest:
    """Finds the k documents with the largest products among the cells nearest to each query.

    Args:
        path: File of `build_index`.
        queries: (queries, hidden) fp32.
        k: Number of documents for each query.
    """
    faiss = import_faiss()
    scores, indices = faiss.read_index(str(path), faiss.IO_FLAG_MMAP).search(queries, k)
    # Equal scores in the order of the documents.
    order = np.lexsort((indices, -scores), axis=1)
    indices, scores = np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Nearest(indices.astype(np.int64), np.where(indices < 0, -np.inf, scores).astype(np.float64))
