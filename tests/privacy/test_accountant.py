"""The accountant against numerical integration, closed forms, and values of opacus 1.6.0."""

import math

import numpy as np
import pytest

from framework.errors import ConfigError
from framework.privacy.accountant import epsilon_of, solve_sigma, step_rdp
from framework.privacy.guarantee import Guarantee, PrivacySettings, solve_guarantee


def rdp_by_integration(order: float, sigma: float, rate: float) -> float:
    """Integrates the definition: the moment of the ratio of the mixture to the normal distribution at 0."""
    z = np.linspace(-12 * sigma, 12 * sigma + order, 1_000_001)
    log_normal = -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * sigma**2))
    # The ratio has mean 1, and most moments are close to it.
    excess = np.exp(log_normal) * (np.expm1(order * log_ratio) - order * np.expm1(log_ratio))
    return math.log1p(excess.sum() * (z[1] - z[0])) / (order - 1)


@pytest.mark.parametrize("sigma", [0.6, 1.1, 4.0])
@pytest.mark.parametrize("rate", [0.002, 0.1, 0.6])
@pytest.mark.parametrize("order", [1.3, 2.0, 4.7, 9.0])
def test_rdp_of_a_step_equals_its_integral(order: float, rate: float, sigma: float):
    assert step_rdp(order, sigma, rate) == pytest.approx(rdp_by_integration(order, sigma, rate), rel=1e-6, abs=1e-12)


def test_without_sampling_the_rdp_is_that_of_the_gaussian_mechanism():
    assert step_rdp(5.0, 2.0, 1.0) == 5.0 / 8.0


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "expected"),
    [  # opacus 1.6.0, accountant "rdp"
        (0.7, 32 / 6920, 651, 1e-5, 2.8436430449),
        (1.0, 0.01, 1000, 1e-5, 2.1013652716),
        (0.5, 0.1, 50, 1e-6, 29.0403226169),
        (2.0, 0.5, 300, 1e-5, 30.7062484183),
        (1.1, 1.0, 10, 1e-5, 16.8566775996),
        (0.6, 0.03, 10, 1e-5, 5.4595492842),
    ],
)
def test_epsilon_equals_that_of_opacus(sigma, rate, steps, delta, expected):
    assert epsilon_of(sigma, rate, steps, delta) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps", "expected"),
    [  # opacus 1.6.0, get_noise_multiplier with accountant "rdp" and epsilon_tolerance 1e-4
        (8, 1e-5, 256 / 6920, 270, 0.77714443),
        (3, 1e-5, 0.01, 2000, 0.97850800),
        (1, 1e-6, 0.05, 500, 5.20874023),
        (8, 1e-5, 32 / 6920, 651, 0.50206661),
    ],
)
def test_sigma_equals_that_of_opacus_and_satisfies_epsilon(epsilon, delta, rate, steps, expected):
    sigma = solve_sigma(epsilon, delta, rate, steps)
    assert sigma == pytest.approx(expected, rel=1e-3)
    assert epsilon - 1e-3 * epsilon < epsilon_of(sigma, rate, steps, delta) <= epsilon


def test_extreme_requests_end():
    assert solve_sigma(100.0, 1e-3, 0.5, 1) < 1.0
    with pytest.raises(ConfigError, match="No noise reaches this guarantee"):
        solve_sigma(1e-6, 1e-12, 1.0, 10**9)


def test_a_guarantee_knows_what_is_spent_and_keeps_its_record():
    settings = PrivacySettings(epsilon=8.0, delta=1e-4, clip=2.0)
    guarantee = solve_guarantee(settings, "row", num_units=5000, expected_batch=100, steps=200)
    assert guarantee.sampling_rate == 0.02
    assert guarantee.noise_scale == guarantee.sigma * 2.0 / 100
    assert guarantee.spent(0) == 0.0
    assert 0 < guarantee.spent(50) < guarantee.spent(200) == pytest.approx(8.0, rel=1e-4)
    assert Guarantee.from_record(guarantee.as_record()) == guarantee


@pytest.mark.parametrize(
    ("values", "num_units", "batch", "message"),
    [
        ({"epsilon": 0.0}, 1000, 10, "epsilon` is 0.0"),
        ({"epsilon": 101.0}, 1000, 10, "at most 100"),
        ({"delta": 1.0}, 1000, 10, "less than 1"),
        ({"clip": 0.0}, 1000, 10, "clip` is 0.0"),
        ({"delta": 1e-3}, 1000, 10, "Choose less than 1.0e-03"),
        ({}, 1000, 1001, "at most the size of the split"),
    ],
)
def test_requests_without_meaning_are_refused(values, num_units, batch, message):
    values = {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, **values}
    with pytest.raises(ConfigError, match=message):
        solve_guarantee(PrivacySettings(**values), "row", num_units, batch, 10)
