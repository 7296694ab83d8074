"""Confidence intervals of rates: Wilson's for shares of independent cases, and the bootstrap for other means."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from framework.random import key

NORMAL_95 = 1.959963984540054
_LOW, _HIGH = 2.5, 97.5

WILSON = "Wilson, 95 %"
BOOTSTRAP = "bootstrap, 95 %"


@dataclass(frozen=True)
class Interval:
    """Confidence interval.

    Attributes:
        low: Lower limit.
        high: Upper limit.
        method: Name of the method with its confidence.
    """

    low: float
    high: float
    method: str


def wilson(count: int, total: int) -> Interval | None:
    """Returns Wilson's score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        count: Number of cases with the property.
        total: Number of independent cases; None is returned for 0.
    """
    if total == 0:
        return None
    share, square = count / total, NORMAL_95**2 / total
    centre = share + square / 2
    spread = math.sqrt(square * (share * (1 - share) + square / 4))
    return Interval(
        0.0 if count == 0 else (centre - spread) / (1 + square),
        1.0 if count == total else (centre + spread) / (1 + square),
        WILSON,
    )


def bootstrap(
    num_units: int, statistic: Callable[[np.ndarray], float], seed: int, num_samples: int = 1000
) -> Interval | None:
    """Returns the percentile interval of a statistic under resampling of units (Efron 1979).

    Args:
        num_units: Number of independent units, such as rows or clusters of rows; None is returned below 2.
        statistic: Function of (num_units,) int64 indices of units, drawn with replacement.
        seed: Seed of the draws.
        num_samples: Number of resamplings. Samples whose statistic is not finite are ignored.
    """
    if num_units < 2:
        return None
    random = np.random.Generator(np.random.Philox(key=key(seed, "bootstrap")))
    values = np.array([statistic(random.integers(0, num_units, num_units)) for _ in range(num_samples)])
    return percentiles(values)


def percentiles(samples: np.ndarray) -> Interval | None:
    """Returns the interval of a statistic from its values under resampling; None without a finite value.

    Args:
        samples: (resamples,) values. Values that are not finite are ignored.
    """
    values = samples[np.isfinite(samples)]
    if not len(values):
        return None
    low, high = np.percentile(values, (_LOW, _HIGH))
    return Interval(float(low), float(high), BOOTSTRAP)
