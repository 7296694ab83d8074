"""Tests of areas under the curve and of members found, against counts by hand, loops and binomial bounds."""

import math

import numpy as np
import pytest

from framework.audits.separation import area_interval, area_under_curve, found_members, non_members_needed


def test_the_area_counts_pairs_and_half_of_each_tie():
    # Pairs of the member 1: both larger; of 2: one tie and one larger; of 5: none.
    assert area_under_curve(np.array([1.0, 2.0, 5.0]), np.array([2.0, 4.0])) == (2 + 1.5 + 0) / 6
    assert area_under_curve(np.zeros(3), np.zeros(5)) == 0.5
    assert area_under_curve(np.array([0.0]), np.array([1.0])) == 1.0
    assert area_under_curve(np.array([1.0]), np.array([0.0])) == 0.0


def test_the_area_equals_a_loop_over_pairs():
    random = np.random.default_rng(0)
    members, others = random.integers(0, 6, 40).astype(float), random.integers(0, 9, 31).astype(float)
    pairs = [(own < other) + 0.5 * (own == other) for own in members for other in others]
    assert area_under_curve(members, others) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize(("area", "members", "others"), [(0.5, 30, 30), (0.81, 20, 55), (1.0, 20, 20), (0.0, 9, 4)])
def test_limits_are_as_far_from_the_area_as_their_own_standard_error_says(area, members, others):
    """Hanley and McNeil's standard error of a limit t, with the mean of both numbers (Newcombe 2006, method 5)."""
    interval = area_interval(area, members, others)
    assert 0 <= interval.low <= area <= interval.high <= 1
    for limit, end in ((interval.low, 0.0), (interval.high, 1.0)):
        if area == end:
            assert limit == end
            continue
        first, second = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        middle = (members + others) / 2 - 1
        variance = limit * (1 - limit) + middle * (first - limit**2 + second - limit**2)
        assert abs(area - limit) == pytest.approx(1.959964 * math.sqrt(variance / (members * others)), abs=1e-6)


def test_equal_scores_are_covered_in_95_of_100_draws():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        interval = area_interval(area_under_curve(random.random(30), random.random(30)), 30, 30)
        covered += interval.low <= 0.5 <= interval.high
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_members_are_counted_below_the_largest_threshold_that_the_rate_admits():
    # 200 non-members 0, 1, ... 199: 1 % admits two false alarms, the scores 0 and 1, so that the threshold is 2.
    members = np.array([-5.0, 0.0, 1.9, 2.0, 150.0])
    found = found_members(members, np.arange(200.0), 10)
    assert (found.rate, found.false_alarms) == (3 / 5, 2)
    # Wilson's interval of 3 of 5.
    assert (found.interval.low, found.interval.high) == pytest.approx((0.2307, 0.8824), abs=1e-4)


def test_ties_admit_no_further_false_alarm():
    others = np.array([0.0] * 3 + [1.0] * 197)  # a threshold above 0 would give three false alarms of two
    found = found_members(np.array([-1.0, 0.0, 0.0, 3.0]), others, 10)
    assert (found.rate, found.false_alarms) == (1 / 4, 0)


@pytest.mark.parametrize(("per_thousand", "needed"), [(10, 100), (1, 1000)])
def test_a_rate_needs_non_members_for_one_false_alarm(per_thousand, needed):
    assert non_members_needed(per_thousand) == needed
    assert found_members(np.zeros(5), np.arange(needed - 1.0), per_thousand) is None
    assert found_members(np.zeros(5), np.arange(1.0, needed + 1), per_thousand).false_alarms == 1
