"""Rates of predicted labels by group, and differences between groups under the names that fairlearn uses.

Each function has a leading dim of resamplings, so that a bootstrap is one matrix product.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from framework.random import generator

_MAX_WEIGHTS = 2_000_000
"""Numbers in a block of bootstrap weights: 16 MB."""


@dataclass(frozen=True, slots=True)
class LabelRates:
    """Rates of each label in one group; NaN with a zero denominator.

    Attributes:
        selection: (resamples, labels) share of rows for which the label is predicted.
        true_positive: (resamples, labels) share of rows with the label for which it is predicted.
        false_positive: (resamples, labels) share of rows without the label for which it is predicted.
    """

    selection: np.ndarray
    true_positive: np.ndarray
    false_positive: np.ndarray


def label_rates(weights: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> LabelRates:
    """Computes the rates of one group.

    Args:
        weights: (resamples, rows) float64, how often each row counts.
        predicted: (rows, labels) True for predicted labels.
        expected: (rows, labels) True for labels of the data.
    """
    predicted, expected = predicted.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return LabelRates(
            (weights @ predicted) / weights.sum(axis=1, keepdims=True),
            (weights @ (predicted * expected)) / (weights @ expected),
            (weights @ (predicted * (1 - expected))) / (weights @ (1 - expected)),
        )


def joined_rates(parts: Sequence[LabelRates]) -> LabelRates:
    """Concatenates the resamplings of one group."""
    return LabelRates(
        np.concatenate([part.selection for part in parts]),
        np.concatenate([part.true_positive for part in parts]),
        np.concatenate([part.false_positive for part in parts]),
    )


def disparities(groups: Sequence[LabelRates]) -> dict[str, np.ndarray]:
    """Compares the rates of groups.

    Demographic parity compares selection rates. Equalized odds (Hardt et al. 2016, arXiv:1610.02413) takes the worse
    of the comparisons of true and of false positive rates. A difference is the largest rate minus the smallest, 0
    without disparity. A ratio is the smallest rate divided by the largest, 1 without disparity.

    Args:
        groups: Rates of at least two groups with the same labels and resamplings.

    Returns:
        (resamples, labels) by the name of the function in `fairlearn.metrics`. A value is NaN if a rate of a group is
        undefined, or if the largest rate of a ratio is 0.
    """
    selection, true_positive, false_positive = (
        np.stack(rates)
        for rates in zip(*((each.selection, each.true_positive, each.false_positive) for each in groups), strict=True)
    )
    return {
        "demographic_parity_difference": _difference(selection),
        "demographic_parity_ratio": _ratio(selection),
        "equalized_odds_difference": np.maximum(_difference(true_positive), _difference(false_positive)),
        "equalized_odds_ratio": np.minimum(_ratio(true_positive), _ratio(false_positive)),
    }


def _difference(rates: np.ndarray) -> np.ndarray:
    return rates.max(axis=0) - rates.min(axis=0)


def _ratio(rates: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return rates.min(axis=0) / rates.max(axis=0)


def extreme_disparities(groups: Sequence[LabelRates], samples: Sequence[LabelRates]) -> dict[str, np.ndarray]:
    """Compares resampled rates of the two groups that differ most in the rates of all rows.

    The largest of several resampled differences would be biased upwards. With the pair of groups fixed, a difference
    may be negative and a ratio above 1: the resampled groups then differ in the other direction.

    Args:
        groups: Rates of all rows of each group, with one resampling.
        samples: Resampled rates of each group.

    Returns:
        (resamples, labels) by name, as `disparities`.
    """
    pairs = {}
    for name in ("selection", "true_positive", "false_positive"):
        rates = np.stack([getattr(each, name)[0] for each in groups])
        drawn = np.stack([getattr(each, name) for each in samples])
        columns = np.arange(rates.shape[1])
        # Sorted, so that two groups with equal rates are two groups.
        order = np.argsort(rates, axis=0, kind="stable")
        high, low = drawn[order[-1], :, columns].T, drawn[order[0], :, columns].T
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs[name] = (_difference(rates), _ratio(rates), high - low, low / high)
    positive, negative = pairs["true_positive"], pairs["false_positive"]
    return {
        "demographic_parity_difference": pairs["selection"][2],
        "demographic_parity_ratio": pairs["selection"][3],
        "equalized_odds_difference": np.where(positive[0] >= negative[0], positive[2], negative[2]),
        "equalized_odds_ratio": np.where(positive[1] <= negative[1], positive[3], negative[3]),
    }


def bootstrap_weights(num_rows: int, num_samples: int, *key_parts: int | str) -> Iterator[np.ndarray]:
    """Yields blocks of bootstrap weights, which depend on the arguments alone.

    Args:
        num_rows: Number of rows of a group.
        num_samples: Number of resamplings.
        key_parts: Seed and names that identify the group.

    Yields:
        (resamples, rows) float64; each row of a block holds how often each row was drawn with replacement.
    """
    random = generator(*key_parts, "bootstrap")
    block = max(1, _MAX_WEIGHTS // max(num_rows, 1))
    for start in range(0, num_samples, block):
        count = min(block, num_samples - start)
        drawn = random.integers(0, num_rows, (count, num_rows)) + num_rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * num_rows).reshape(count, num_rows).astype(np.float64)
