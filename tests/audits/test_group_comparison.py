"""Tests of comparisons of groups against values computed by hand, and of their intervals and p-values."""

import math

import numpy as np
import pytest

from framework.audits.group_comparison import Labels, compare_labels, permuted_disparities
from framework.audits.grouping import Grouping


def grouping(*sizes: int) -> Grouping:
    bounds = np.cumsum([0, *sizes])
    return Grouping("gender", {"abc"[n]: np.arange(bounds[n], bounds[n + 1]) for n in range(len(sizes))}, {}, 0)


def binary(predicted: list[int], expected: list[int]) -> Labels:
    columns = [np.stack([np.array(values) == 0, np.array(values) == 1], axis=1) for values in (predicted, expected)]
    return Labels(("0", "1"), *columns)


def test_numbers_of_two_groups():
    # Group a: 4 rows, group b: 6 rows.
    labels = binary([1, 1, 0, 0, 1, 0, 0, 0, 0, 1], [1, 0, 0, 1, 1, 1, 1, 1, 0, 0])
    found = {(each.group, each.measure, each.label): each for each in compare_labels(grouping(4, 6), labels, 200, 0)}
    values = {
        ("a", "selection_rate", "1"): 2 / 4,
        ("b", "selection_rate", "1"): 2 / 6,
        ("a", "true_positive_rate", "1"): 1 / 2,
        ("b", "true_positive_rate", "1"): 1 / 4,
        ("a", "false_positive_rate", "1"): 1 / 2,
        ("b", "false_positive_rate", "1"): 1 / 2,
        (None, "demographic_parity_difference", "1"): 2 / 4 - 2 / 6,
        (None, "demographic_parity_ratio", "1"): (2 / 6) / (2 / 4),
        (None, "equalized_odds_difference", "1"): 1 / 4,
        (None, "equalized_odds_ratio", "1"): 1 / 2,
        (None, "demographic_parity_ratio", "0"): (2 / 4) / (4 / 6),
        (None, "equalized_odds_ratio", "0"): (1 / 2) / (3 / 4),
    }
    for name, value in values.items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name
        assert found[name].interval is not None
    assert found["a", "selection_rate", "1"].p is None


def test_a_planted_difference_is_significant_and_a_random_one_is_not():
    random = np.random.default_rng(0)
    expected = random.integers(0, 2, 200)
    unfair = np.where(np.arange(200) < 100, expected, expected * (random.random(200) < 0.5))
    fair = expected * (random.random(200) < 0.7)
    for predicted, is_unfair in ((unfair, True), (fair, False)):
        for each in compare_labels(grouping(100, 100), binary(predicted.tolist(), expected.tolist()), 400, 1):
            if each.measure == "equalized_odds_difference" and each.label == "1":
                assert each.p is not None and each.interval is not None
                assert (each.p < 0.01) == is_unfair
                assert (each.interval.low > 0) == is_unfair
                assert each.interval.low < each.value < each.interval.high
            if each.measure == "demographic_parity_ratio" and each.label == "1":
                assert each.p is not None
                assert (each.p < 0.01) == is_unfair


def test_equal_groups_have_an_interval_around_no_difference():
    labels = binary([1, 0] * 40, [1, 1, 0, 0] * 20)
    for each in compare_labels(grouping(40, 40), labels, 200, 0):
        if each.group is None:
            assert each.interval is not None
            none = 1.0 if each.measure.endswith("ratio") else 0.0
            assert each.value == none
            assert each.interval.low < none < each.interval.high


def test_an_undefined_rate_has_no_interval_and_no_p():
    labels = binary([1, 0, 1, 0], [0, 0, 1, 0])
    found = {
        (each.measure, each.label): each for each in compare_labels(grouping(2, 2), labels, 100, 0) if not each.group
    }
    undefined = found["equalized_odds_difference", "1"]
    assert math.isnan(undefined.value)
    assert (undefined.interval, undefined.p) == (None, None)
    assert found["demographic_parity_difference", "1"].value == 0


def test_permutations_keep_expected_labels_in_their_groups():
    # All rows of group a have label 1, and the model is right on each row. Only the base rates differ.
    expected = [1] * 30 + [1, 0] * 15
    labels = binary(expected, expected)
    drawn = permuted_disparities(grouping(30, 30), labels, 100, 0)
    # Odds compare within expected labels, where all predictions are equal; group a has no row without the label 1.
    assert np.isnan(drawn["equalized_odds_difference"]).all()
    assert 0 < drawn["demographic_parity_difference"].max() < 0.5
    assert drawn["demographic_parity_difference"].shape == (100, 2)


def test_results_do_not_depend_on_the_size_of_blocks(monkeypatch):
    random = np.random.default_rng(2)
    labels = binary(random.integers(0, 2, 60).tolist(), random.integers(0, 2, 60).tolist())
    whole = list(compare_labels(grouping(20, 20, 20), labels, 150, 3))
    monkeypatch.setattr("framework.audits.group_comparison._MAX_DRAWS", 500)
    monkeypatch.setattr("framework.audits.group_rates._MAX_WEIGHTS", 500)
    assert list(compare_labels(grouping(20, 20, 20), labels, 150, 3)) == whole
