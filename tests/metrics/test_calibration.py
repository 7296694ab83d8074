"""The expected calibration error of Guo et al. 2017: by hand, by their formula in a loop, by torchmetrics."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from framework.metrics.calibration import calibration_bins, expected_calibration_error


def guo(probabilities: list[float], came_true: list[bool], num_bins: int) -> float:
    """Computes equations 3 to 5 with B_m = ((m - 1) / M, m / M], outcome by outcome."""
    error = 0.0
    for m in range(1, num_bins + 1):
        inside = [
            (p, t) for p, t in zip(probabilities, came_true, strict=True) if (m - 1) / num_bins < p <= m / num_bins
        ]
        if inside:
            accuracy = sum(t for _, t in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            error += len(inside) / len(probabilities) * abs(accuracy - confidence)
    return error


def test_bins_by_hand():
    # Two bins: (0, 0.5] contains 0.3 and 0.5, of which one came true; (0.5, 1] contains 0.9, which did.
    bins = calibration_bins(np.array([0.3, 0.9, 0.5]), np.array([True, True, False]), num_bins=2)
    assert [(each.start, each.stop, each.count) for each in bins] == [(0.0, 0.5, 2), (0.5, 1.0, 1)]
    assert [each.probability for each in bins] == pytest.approx([0.4, 0.9])
    assert [each.share for each in bins] == [0.5, 1.0]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.1 + 1 * 0.1) / 3)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    bins = calibration_bins(np.array([0.0, 0.25, 0.5, 1.0]), np.ones(4, dtype=bool), num_bins=4)
    assert [(each.start, each.count) for each in bins] == [(0.0, 2), (0.25, 1), (0.75, 1)]


@pytest.mark.parametrize("num_labels", [2, 7])
def test_the_error_equals_the_formula_and_torchmetrics(num_labels: int):
    generator = torch.Generator().manual_seed(num_labels)
    probabilities = (3 * torch.randn(400, num_labels, generator=generator)).softmax(-1).double()
    labels = torch.randint(num_labels, (400,), generator=generator)
    confidence, best = probabilities.max(-1)
    came_true = best == labels
    error = expected_calibration_error(calibration_bins(confidence.numpy(), came_true.numpy(), 15))
    assert error == pytest.approx(guo(confidence.tolist(), came_true.tolist(), 15))
    theirs = multiclass_calibration_error(probabilities, labels, num_labels, n_bins=15, norm="l1")
    assert error == pytest.approx(float(theirs), abs=1e-6)
    assert error > 0.05


def test_without_outcomes_there_is_no_error():
    assert math.isnan(expected_calibration_error(calibration_bins(np.zeros(0), np.zeros(0, dtype=bool))))
