"""Ranks by hand, and values compared with scikit-learn and pytrec_eval."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from framework.metrics.ranking import (
    RankedGains,
    average_precision,
    hit_rate,
    ndcg,
    pad_lists,
    precision,
    rank_gains,
    recall,
    reciprocal_rank,
)

# First relevant at ranks 1, 3 and 2; relevant in all 2, 1 and 3. No candidate of the last query is relevant.
GAINS = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=float)
RANKED = RankedGains(GAINS, -np.sort(-GAINS, axis=1))


def test_gains_are_sorted_by_score_and_ties_keep_their_order():
    scores = np.array([[0.1, 0.9, 0.9, -1.0], [0.0, 0.0, 0.5, 0.2]])
    ranked = rank_gains(scores, np.array([[1, 0, 2, -1], [0, 1, 0, 3]]))
    # Candidates 1, 2, 0, 3 and 2, 3, 0, 1.
    assert ranked.gains.tolist() == [[0, 2, 1, 0], [0, 3, 0, 1]]
    assert ranked.ideal.tolist() == [[2, 1, 0, 0], [3, 1, 0, 0]]


def test_metrics_by_hand():
    assert reciprocal_rank(RANKED) == pytest.approx([1, 1 / 3, 1 / 2, 0])
    assert reciprocal_rank(RANKED, 2) == pytest.approx([1, 0, 1 / 2, 0])
    assert hit_rate(RANKED, 1).tolist() == [1, 0, 0, 0]
    assert hit_rate(RANKED, 2).tolist() == [1, 0, 1, 0]
    assert precision(RANKED, 2).tolist() == [1 / 2, 0, 1 / 2, 0]
    assert recall(RANKED, 2) == pytest.approx([1 / 2, 0, 1 / 3, 0])
    # Nothing is gained beyond the last candidate.
    assert recall(RANKED, 9).tolist() == [1, 1, 1, 0]
    assert average_precision(RANKED) == pytest.approx([(1 + 2 / 4) / 2, 1 / 3, (1 / 2 + 2 / 3 + 3 / 4) / 3, 0])
    assert average_precision(RANKED, 3) == pytest.approx([1 / 2, 1 / 3, (1 / 2 + 2 / 3) / 3, 0])
    # Gains at rank 2 against ranks 1 and 2.
    second = 1 / np.log2(3)
    assert ndcg(RANKED, 2) == pytest.approx([1 / (1 + second), 0, second / (1 + second), 0])


def test_relevant_candidates_that_are_not_ranked_count():
    """Gains 3 and 1 are ranked at 2 and 3; a third candidate of gain 2 was not found."""
    ranked = rank_gains(np.array([[0.9, 0.5, 0.1]]), np.array([[0, 3, 1]]), ideal=np.array([[1, 2, 3]]))
    second, third = 1 / np.log2(3), 1 / 2
    assert ndcg(ranked) == pytest.approx([(3 * second + third) / (3 + 2 * second + third)])
    assert recall(ranked, 3) == pytest.approx([2 / 3])
    assert average_precision(ranked) == pytest.approx([(1 / 2 + 2 / 3) / 3])


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_equals_that_of_scikit_learn(k):
    random = np.random.default_rng(k)
    scores = random.normal(size=(40, 20))
    gains = random.integers(0, 4, (40, 20)) * (random.random((40, 20)) < random.random((40, 1)))
    gains[:, 0] = 1
    assert ndcg(rank_gains(scores, gains), k).mean() == pytest.approx(ndcg_score(gains, scores, k=k))


def test_lists_of_different_lengths_equal_trec_eval():
    """Lists have ties, graded relevance, and relevant documents that were not found."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    random = np.random.default_rng(0)
    run: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for query in range(30):
        documents = [f"d{number:03}" for number in random.permutation(40)[: random.integers(3, 30)]]
        qrels[f"q{query}"] = {each: int(random.integers(0, 4)) for each in documents[: random.integers(1, 12)]}
        qrels[f"q{query}"]["not found"] = query % 3
        run[f"q{query}"] = {each: float(random.integers(0, 9)) for each in documents}
    measures = {"ndcg_cut.5,10", "ndcg", "recip_rank", "map", "map_cut.5", "recall.5", "P.5"}
    expected = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)

    lists = [sorted(run[query], reverse=True) for query in run]
    scores = pad_lists([[run[query][each] for each in own] for query, own in zip(run, lists, strict=True)], -np.inf)
    gains = pad_lists([[qrels[query].get(each, 0) for each in own] for query, own in zip(run, lists, strict=True)], 0)
    ranked = rank_gains(scores, gains, pad_lists([[*qrels[query].values()] for query in run], 0))
    values = {
        "ndcg_cut_5": ndcg(ranked, 5),
        "ndcg_cut_10": ndcg(ranked, 10),
        "ndcg": ndcg(ranked),
        "recip_rank": reciprocal_rank(ranked),
        "map": average_precision(ranked),
        "map_cut_5": average_precision(ranked, 5),
        "recall_5": recall(ranked, 5),
        "P_5": precision(ranked, 5),
    }
    for name, own in values.items():
        assert own == pytest.approx([expected[query][name] for query in run], abs=1e-9), name
