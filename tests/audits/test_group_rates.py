"""Tests of rates by group and of differences between groups against values computed by hand."""

import numpy as np
import pytest

from framework.audits.group_rates import bootstrap_weights, disparities, label_rates

ONCE = np.ones((1, 8))


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)[:, None]


def test_rates_are_shares_of_the_rows_that_they_name():
    predicted, expected = column(1, 1, 1, 0, 0, 0, 0, 1), column(1, 1, 0, 0, 1, 0, 0, 0)
    rates = label_rates(ONCE, predicted, expected)
    assert rates.selection == pytest.approx(4 / 8)
    assert rates.true_positive == pytest.approx(2 / 3)  # of rows 0, 1 and 4
    assert rates.false_positive == pytest.approx(2 / 5)  # of rows 2, 3, 5, 6 and 7


def test_weights_repeat_rows():
    predicted, expected = column(1, 0, 1, 0), column(1, 1, 0, 0)
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 0, 2]])
    repeated = [0, 0, 0, 1, 3, 3]
    rates = label_rates(weights, predicted, expected)
    alone = label_rates(np.ones((1, 6)), predicted[repeated], expected[repeated])
    assert rates.selection[1] == alone.selection[0] == 3 / 6
    assert rates.true_positive[1] == alone.true_positive[0] == 3 / 4
    assert rates.false_positive[1] == alone.false_positive[0] == 0


def test_differences_and_ratios_compare_the_extreme_groups():
    # Selection 3/4, 1/2, 1/4; true positive rates 1, 1/2, 1/2; false positive rates 1/2, 1/2, 0.
    groups = [
        label_rates(np.ones((1, 4)), column(*predicted), column(1, 1, 0, 0))
        for predicted in ((1, 1, 1, 0), (1, 0, 1, 0), (1, 0, 0, 0))
    ]
    found = {name: float(values[0, 0]) for name, values in disparities(groups).items()}
    assert found == {
        "demographic_parity_difference": pytest.approx(1 / 2),
        "demographic_parity_ratio": pytest.approx(1 / 3),
        "equalized_odds_difference": pytest.approx(1 / 2),
        "equalized_odds_ratio": pytest.approx(0.0),
    }


def test_a_rate_without_rows_is_undefined():
    no_positive = label_rates(np.ones((1, 2)), column(1, 0), column(0, 0))
    assert np.isnan(no_positive.true_positive).all()
    other = label_rates(np.ones((1, 2)), column(1, 0), column(1, 0))
    found = disparities([no_positive, other])
    assert np.isnan(found["equalized_odds_difference"]).all()
    assert found["demographic_parity_difference"] == 0


def test_bootstrap_weights_depend_on_the_key_alone(monkeypatch):
    whole = np.concatenate(list(bootstrap_weights(30, 50, 7, "a")))
    assert whole.shape == (50, 30)
    assert (whole.sum(axis=1) == 30).all()
    assert np.array_equal(whole, np.concatenate(list(bootstrap_weights(30, 50, 7, "a"))))
    monkeypatch.setattr("framework.audits.group_rates._MAX_WEIGHTS", 100)
    assert np.array_equal(whole, np.concatenate(list(bootstrap_weights(30, 50, 7, "a"))))
    assert not np.array_equal(whole, np.concatenate(list(bootstrap_weights(30, 50, 7, "b"))))


def test_bootstrap_weights_are_draws_with_replacement():
    weights = np.concatenate(list(bootstrap_weights(40, 2000, 1)))
    # Each weight is binomial with 40 draws of probability 1/40: mean 1, variance 0.975.
    assert weights.mean() == pytest.approx(1)
    assert weights.var() == pytest.approx(0.975, abs=0.02)
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.005)
