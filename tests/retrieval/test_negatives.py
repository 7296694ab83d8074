"""Windows, margins and draws of hard negatives by hand."""

from dataclasses import replace

import numpy as np
import pytest

from framework.errors import ConfigError
from framework.retrieval.negatives import Candidates, Rules, choose, in_window, rescored

FREE = Rules(relative_margin=None)
PAIR = Candidates(0, 9, 0.8, np.array([4, 2, 7, 1, 5]), np.array([0.9, 0.79, 0.7, 0.5, 0.1]))


def test_known_documents_have_no_rank():
    found, scores = np.array([3, 0, 8, 6, 2, -1, -1]), np.arange(7.0)
    documents, kept = in_window(found, scores, {0, 6}, replace(FREE, range_min=1, range_max=3))
    assert documents.tolist() == [8, 2]
    assert kept.tolist() == [2.0, 4.0]
    assert in_window(found, scores, {0, 6}, replace(FREE, range_min=3))[0].tolist() == []


@pytest.mark.parametrize(
    ("rules", "documents"),
    [
        ({}, [4, 2, 7, 1, 5]),
        ({"num_negatives": 2}, [4, 2]),
        ({"max_score": 0.7}, [7, 1, 5]),
        ({"min_score": 0.5}, [4, 2, 7, 1]),
        ({"absolute_margin": 0.1}, [7, 1, 5]),
        ({"absolute_margin": 0.0}, [2, 7, 1, 5]),
        ({"relative_margin": 0.05}, [7, 1, 5]),
        ({"relative_margin": 0.5}, [5]),
        ({"absolute_margin": 0.1, "relative_margin": 0.5, "min_score": 0.2}, []),
    ],
)
def test_limits(rules, documents):
    assert PAIR.documents[choose(PAIR, replace(FREE, **rules), 0)].tolist() == documents


def test_a_share_of_a_negative_score_is_below_it():
    pair = replace(PAIR, positive_score=-1.0, scores=np.array([-0.9, -1.04, -1.06, -2.0, -3.0]))
    assert choose(pair, Rules(relative_margin=0.05), 0).tolist() == [2, 3, 4]


def test_draws_depend_on_seed_and_pair_only():
    rules = replace(FREE, sampling="random", num_negatives=2)
    drawn = [choose(PAIR, rules, index).tolist() for index in range(400)]
    assert drawn == [choose(PAIR, rules, index).tolist() for index in range(400)]
    assert all(places == sorted(places) and len(set(places)) == 2 for places in drawn)
    # Each of 5 candidates is drawn with probability 2 / 5: 160 of 400, standard deviation 9.8.
    assert all(120 < sum(place in places for places in drawn) < 200 for place in range(5))
    assert drawn != [choose(PAIR, replace(rules, seed=1), index).tolist() for index in range(400)]
    # A draw does not depend on the other candidates' places.
    reordered = replace(PAIR, documents=PAIR.documents[::-1])
    assert set(PAIR.documents[drawn[0]]) == set(reordered.documents[choose(reordered, rules, 0)])


def test_other_scores_change_the_order():
    (pair,) = rescored([PAIR], lambda pairs: [np.array([0.5, 0.1, 0.9, 0.1, 0.3, 0.2]) for _ in pairs])
    assert pair.positive_score == 0.5
    assert pair.documents.tolist() == [2, 1, 5, 4, 7]
    assert pair.scores.tolist() == [0.9, 0.3, 0.2, 0.1, 0.1]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"num_negatives": 0}, "`num_negatives` is 0"),
        ({"range_min": 10, "range_max": 10}, "`range_max` is 10 and `range_min` is 10"),
        ({"relative_margin": -0.1}, "`relative_margin` is -0.1"),
        ({"sampling": "best"}, "`sampling` is 'best'"),
    ],
)
def test_rules_are_checked(rules, message):
    with pytest.raises(ConfigError, match=message):
        Rules(**rules)
