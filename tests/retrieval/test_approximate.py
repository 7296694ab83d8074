"""The index of faiss against exact search."""

import numpy as np
import pytest

from framework.retrieval.approximate import build_index, search_index
from framework.retrieval.search import nearest, unit


def test_most_neighbours_are_those_of_exact_search(tmp_path):
    pytest.importorskip("faiss")
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(40, 16))
    documents = unit(centers[generator.integers(0, 40, 4000)] + 0.3 * generator.normal(size=(4000, 16)))
    queries = unit(centers + 0.3 * generator.normal(size=(40, 16)))
    build_index(documents, tmp_path / "index.faiss")
    found, exact = search_index(tmp_path / "index.faiss", queries, 10), nearest(queries, documents, 10)
    shared = [len(set(one) & set(other)) for one, other in zip(found.indices, exact.indices, strict=True)]
    assert np.mean(shared) > 9
    assert (np.diff(found.scores, axis=1) <= 0).all()
    same = found.indices[:, 0] == exact.indices[:, 0]
    np.testing.assert_allclose(found.scores[same, 0], exact.scores[same, 0], atol=1e-6)
