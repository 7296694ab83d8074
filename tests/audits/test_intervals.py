"""Intervals of rates against published values and a binomial model."""

import numpy as np
import pytest

from framework.audits.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(count, total, low, high):
    interval = wilson(count, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_all_cases_ends_at_one_and_of_no_case_is_none():
    assert wilson(5, 5).high == 1.0
    assert wilson(0, 0) is None


def test_bootstrap_of_a_mean_is_close_to_its_normal_interval_and_depends_on_the_seed_only():
    values = np.arange(400) % 2
    interval = bootstrap(400, lambda chosen: float(values[chosen].mean()), seed=3)
    assert interval == bootstrap(400, lambda chosen: float(values[chosen].mean()), seed=3)
    assert (interval.low, interval.high) == pytest.approx((0.451, 0.549), abs=0.01)
    assert bootstrap(1, lambda chosen: 0.0, seed=3) is None
    assert bootstrap(5, lambda chosen: float("nan"), seed=3) is None
