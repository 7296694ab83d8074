"""Metrics that are a sum over rows divided by another one, of a whole split or of any choice of its rows."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RowRatio:
    """Metric of a split from two numbers of each row.

    Attributes:
        numerators: (rows,) float64 numbers whose sum is divided.
        denominators: (rows,) float64 numbers whose sum is the divisor, none negative.
    """

    numerators: np.ndarray
    denominators: np.ndarray

    def total(self) -> float:
        """Returns the metric of all rows; 0 with a zero denominator, as in the scripts of CoNLL and SQuAD."""
        divisor = float(self.denominators.sum())
        return float(self.numerators.sum()) / divisor if divisor else 0.0

    def values(self, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Computes the metric of chosen rows, each counted several times.

        Args:
            items: (chosen,) int64 indices of rows.
            weights: (resamples, chosen) float64, how often each row counts.

        Returns:
            (resamples,) float64; NaN with a zero denominator, which says nothing about the chosen rows.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((weights @ self.numerators[items]) / (weights @ self.denominators[items]))
