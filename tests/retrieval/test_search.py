"""Search in blocks against a full sort of all scores."""

import numpy as np
import pytest

from framework.retrieval import search
from framework.retrieval.search import nearest, unit


@pytest.mark.parametrize(("k", "documents_at_once"), [(1, 7), (5, 7), (5, 100), (40, 16), (60, 9)])
def test_search_in_blocks_equals_a_full_sort(monkeypatch, k, documents_at_once):
    monkeypatch.setattr(search, "DOCUMENTS_AT_ONCE", documents_at_once)
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 3)
    generator = np.random.default_rng(0)
    # Whole numbers: products are exact in any order, and many are equal.
    documents = generator.integers(-2, 3, (50, 4)).astype(np.float32)
    queries = generator.integers(-2, 3, (8, 4)).astype(np.float32)
    scores = queries @ documents.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    seen = []
    found = nearest(queries, documents, k, advance=lambda done, total: seen.append((done, total)))
    assert seen == [(min(done, 50), 50) for done in range(documents_at_once, 50 + documents_at_once, documents_at_once)]
    num = min(k, 50)
    np.testing.assert_array_equal(found.indices[:, :num], order)
    np.testing.assert_array_equal(found.scores[:, :num], np.take_along_axis(scores, order, axis=1))
    assert (found.indices[:, num:] == -1).all() and np.isneginf(found.scores[:, num:]).all()


def test_rows_are_scaled_to_length_1():
    scaled = unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0.0, 0.0]])
    assert scaled.dtype == np.float32
