"""Separation of members from non-members by a score: area under the ROC curve, members found at few false alarms."""

import math
from dataclasses import dataclass

import numpy as np

from framework.audits.intervals import NORMAL_95, Interval, wilson

NEWCOMBE = "Newcombe, 95 %"

_HALVINGS = 60


@dataclass(frozen=True)
class FoundMembers:
    """Members found at a limit of false alarms.

    Attributes:
        rate: True positive rate, the share of members with a smaller score than the threshold.
        interval: Wilson's interval of the rate, at this threshold.
        false_alarms: Number of non-members with a smaller score than the threshold.
    """

    rate: float
    interval: Interval
    false_alarms: int


def area_under_curve(members: np.ndarray, non_members: np.ndarray) -> float:
    """Returns the probability that a member has a smaller score than a non-member; ties count one half.

    This is the area under the ROC curve and the statistic of Mann and Whitney (Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747).

    Args:
        members: (members,) scores, at least one.
        non_members: (non-members,) scores, at least one.
    """
    ordered = np.sort(non_members)
    larger = len(ordered) - np.searchsorted(ordered, members, side="right")
    at_least = len(ordered) - np.searchsorted(ordered, members, side="left")
    return int((larger + at_least).sum()) / (2 * len(members) * len(non_members))


def area_interval(area: float, num_members: int, num_non_members: int) -> Interval:
    """Returns the interval of an area under the ROC curve (Newcombe 2006, doi:10.1002/sim.2324, method 5).

    Its limits are the areas that lie 1.96 of their own standard errors from the measured one, as in Wilson's interval
    of a share. At an area of 0.5 the standard error is that of the Mann-Whitney test.

    Args:
        area: Measured area, in [0, 1].
        num_members: Number of members.
        num_non_members: Number of non-members.
    """
    product, middle = num_members * num_non_members, (num_members + num_non_members) / 2 - 1

    def is_inside(limit: float) -> bool:
        spread = 1 + middle * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        return abs(area - limit) <= NORMAL_95 * math.sqrt(limit * (1 - limit) * spread / product)

    def search(outside: float) -> float:
        inside = area
        for _ in range(_HALVINGS):
            centre = (inside + outside) / 2
            inside, outside = (centre, outside) if is_inside(centre) else (inside, centre)
        return inside

    return Interval(0.0 if area == 0 else search(0.0), 1.0 if area == 1 else search(1.0), NEWCOMBE)


def non_members_needed(per_thousand: int) -> int:
    """Returns the number of non-members of which a rate of false alarms, in thousandths, is one."""
    return -(-1000 // per_thousand)


def found_members(members: np.ndarray, non_members: np.ndarray, per_thousand: int) -> FoundMembers | None:
    """Counts the members below the threshold that admits at most a given rate of false alarms.

    Of all thresholds with at most this rate, the largest is used. The counts are exact; nothing is interpolated.

    Args:
        members: (members,) scores, at least one.
        non_members: (non-members,) scores.
        per_thousand: Allowed false alarms among 1,000 non-members, for example 10.

    Returns:
        The members found; None if the rate allows less than one false alarm among these non-members.
    """
    allowed = len(non_members) * per_thousand // 1000
    if allowed == 0:
        return None
    threshold = np.sort(non_members)[allowed]
    found = int((members < threshold).sum())
    interval = wilson(found, len(members))
    assert interval is not None
    return FoundMembers(found / len(members), interval, int((non_members < threshold).sum()))
