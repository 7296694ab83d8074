"""Reliability bins and the expected calibration error.

Guo et al. 2017 ("On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2, equations 3 to 5).
"""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
"""Number of bins in the experiments of the paper (section 5)."""


@dataclass(frozen=True)
class CalibrationBin:
    """Outcomes with a probability above `start` and at most `stop`. The first bin includes 0.

    Attributes:
        start: Lower edge.
        stop: Upper edge.
        count: Number of outcomes, at least 1.
        probability: Mean probability of the outcomes.
        share: Share of outcomes that came true, in [0, 1].
    """

    start: float
    stop: float
    count: int
    probability: float
    share: float


def calibration_bins(
    probabilities: np.ndarray, came_true: np.ndarray, num_bins: int = NUM_BINS
) -> list[CalibrationBin]:
    """Sorts outcomes into bins of equal width. Empty bins are omitted.

    Args:
        probabilities: (outcomes,) in [0, 1].
        came_true: (outcomes,) bool.
        num_bins: Number of bins in [0, 1].
    """
    edges = np.arange(num_bins + 1) / num_bins
    bin_of = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, num_bins - 1)
    bins = []
    for index in range(num_bins):
        inside = bin_of == index
        count = int(inside.sum())
        if count:
            probability, share = float(probabilities[inside].mean()), float(came_true[inside].mean())
            bins.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, probability, share))
    return bins


def expected_calibration_error(bins: list[CalibrationBin]) -> float:
    """Returns the mean over outcomes of |share - probability| of their bin, in [0, 1]; NaN without outcomes."""
    total = sum(each.count for each in bins)
    if not total:
        return float("nan")
    return sum(each.count * abs(each.share - each.probability) for each in bins) / total
