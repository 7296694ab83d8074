"""How far probabilities are from what comes true: reliability bins and the expected calibration error.

Guo et al. 2017 ("On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2, equations 3 to 5).
"""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
"""As in their experiments (section 5)."""


@dataclass(frozen=True)
class CalibrationBin:
    """Outcomes whose probability is above `start` and at most `stop`; the first bin takes 0 too.

    Attributes:
        start: Lower edge.
        stop: Upper edge.
        count: Outcomes in it, at least 1.
        probability: Mean of their probabilities.
        share: How many of them came true, in [0, 1].
    """

    start: float
    stop: float
    count: int
    probability: float
    share: float


def calibration_bins(
    probabilities: np.ndarray, came_true: np.ndarray, num_bins: int = NUM_BINS
) -> list[CalibrationBin]:
    """Bins of equal width; those without outcomes are left out.

    Args:
        probabilities: (outcomes,) in [0, 1].
        came_true: (outcomes,) bool.
        num_bins: Bins that [0, 1] is cut into.
    """
    edges = np.arange(num_bins + 1) / num_bins
    places = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = places == place
        count = int(inside.sum())
        if count:
            probability, share = float(probabilities[inside].mean()), float(came_true[inside].mean())
            bins.append(CalibrationBin(float(edges[place]), float(edges[place + 1]), count, probability, share))
    return bins


def expected_calibration_error(bins: list[CalibrationBin]) -> float:
    """Mean over all outcomes of |share - probability| of their bin, in [0, 1]; NaN without outcomes."""
    total = sum(each.count for each in bins)
    if not total:
        return float("nan")
    return sum(each.count * abs(each.share - each.probability) for each in bins) / total
