"""Ranks by hand, and nDCG compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from framework.metrics.ranking import hit_rate, ndcg, ranked_relevance, recall, reciprocal_rank

# First relevant at ranks 1, 3 and 2; relevant in all 2, 1 and 3.
RANKED = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 1]], dtype=bool)


def test_relevance_is_sorted_by_score_and_ties_keep_their_order():
    similarities = np.array([[0.1, 0.9, 0.9, -1.0], [0.0, 0.0, 0.5, 0.2]])
    is_relevant = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=bool)
    # Candidates 1, 2, 0, 3 and 2, 3, 0, 1.
    assert ranked_relevance(similarities, is_relevant).tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]


def test_metrics_by_hand():
    assert reciprocal_rank(RANKED) == pytest.approx([1, 1 / 3, 1 / 2])
    assert hit_rate(RANKED, 1).tolist() == [1, 0, 0]
    assert hit_rate(RANKED, 2).tolist() == [1, 0, 1]
    assert recall(RANKED, 2) == pytest.approx([1 / 2, 0, 1 / 3])
    # Nothing is gained beyond the last candidate.
    assert recall(RANKED, 9).tolist() == [1, 1, 1]
    # Gains at rank 2 against ranks 1 and 2.
    second = 1 / np.log2(3)
    assert ndcg(RANKED, 2) == pytest.approx([1 / (1 + second), 0, second / (1 + second)])


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_equals_that_of_scikit_learn(k):
    random = np.random.default_rng(k)
    similarities = random.normal(size=(40, 20))
    is_relevant = random.random((40, 20)) < random.random((40, 1))
    is_relevant[:, 0] = True
    ours = ndcg(ranked_relevance(similarities, is_relevant), k)
    assert ours.mean() == pytest.approx(ndcg_score(is_relevant, similarities, k=k))
