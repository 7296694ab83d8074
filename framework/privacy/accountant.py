"""Accountant of DP-SGD: the Renyi differential privacy (RDP) of the Gaussian mechanism on Poisson samples.

Formulas: Mironov, Talwar, Zhang 2019 (arXiv:1908.10530), sections 3.2 and 3.3, for the RDP of one step; steps add up.
The conversion to (epsilon, delta) is that of Canonne, Kamath, Steinke 2020 (arXiv:2004.00010), proposition 12. Data
sets are neighbours if one has one more unit. The result is an upper bound of epsilon.
"""

import functools
import math

from framework.errors import ConfigError

ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(80.0, 128.0, 256.0),
)
"""Orders at which the RDP is computed. The best one gives epsilon."""

_NEGLIGIBLE = -30.0
"""Logarithm of terms at which a series ends, relative to a sum of at least 1."""
_LARGEST_SIGMA = 1e6
_TOLERANCE = 1e-6
"""Relative tolerance of the noise multiplier."""


def epsilon_of(sigma: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Returns the epsilon of a run.

    Args:
        sigma: Noise multiplier: standard deviation of the noise / clipping norm.
        sampling_rate: Probability that a unit takes part in a step, in (0, 1].
        steps: Number of steps.
        delta: Probability delta of the guarantee, in (0, 1).
    """
    return max(0.0, min(_epsilon_at(order, sigma, sampling_rate, steps, delta) for order in ORDERS))


def _epsilon_at(order: float, sigma: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Returns the bound of epsilon that one order gives."""
    rdp = steps * step_rdp(order, sigma, sampling_rate)
    return rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def solve_sigma(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Returns the smallest noise multiplier whose epsilon does not exceed the given one, to 1e-6 of its value.

    Raises:
        ConfigError: No noise multiplier below one million suffices.
    """
    index = len(ORDERS) // 2

    def is_too_small(sigma: float) -> bool:
        """Compares epsilon at an order that no neighbour improves. Each order gives a bound, the best or not."""
        nonlocal index
        at = functools.cache(lambda index: _epsilon_at(ORDERS[index], sigma, sampling_rate, steps, delta))
        while index > 0 and at(index - 1) <= at(index):
            index -= 1
        while index < len(ORDERS) - 1 and at(index + 1) < at(index):
            index += 1
        return at(index) > epsilon

    high = 1.0
    while is_too_small(high):
        high *= 2
        if high > _LARGEST_SIGMA:
            raise ConfigError(
                f"privacy.epsilon is {epsilon} and privacy.delta is {delta}. No noise reaches this guarantee in "
                f"{steps} steps with sampling rate {sampling_rate:.3g}. Raise privacy.epsilon or privacy.delta."
            )
    low = high / 2 if high > 1 else 0.0
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        if is_too_small(middle):
            low = middle
        else:
            high = middle
    return high


def step_rdp(order: float, sigma: float, sampling_rate: float) -> float:
    """Returns the RDP of one step at an order above 1."""
    if sampling_rate == 1.0:
        return order / (2 * sigma**2)
    log_moment_of = _log_moment_integer if order.is_integer() else _log_moment_fractional
    try:
        log_moment = log_moment_of(order, sigma, sampling_rate)
    except OverflowError:
        return math.inf
    return log_moment / (order - 1)


def _log_moment_integer(order: float, sigma: float, rate: float) -> float:
    """Returns the logarithm of A_alpha for a whole order (section 3.3, equation 4)."""
    terms = [
        _log_binomial(order, i) + i * math.log(rate) + (order - i) * math.log1p(-rate) + (i * i - i) / (2 * sigma**2)
        for i in range(int(order) + 1)
    ]
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


def _log_moment_fractional(order: float, sigma: float, rate: float) -> float:
    """Returns the logarithm of A_alpha for any order, as two alternating series (section 3.3)."""
    edge = sigma**2 * math.log(1 / rate - 1) + 0.5 if rate < 1 else -math.inf
    terms: list[tuple[float, float]] = []
    sign, log_coefficient, i = 1.0, 0.0, 0
    while True:
        j = order - i
        first = log_coefficient + i * math.log(rate) + j * math.log1p(-rate) + (i * i - i) / (2 * sigma**2)
        first += _log_half_erfc((i - edge) / (math.sqrt(2) * sigma))
        second = log_coefficient + j * math.log(rate) + i * math.log1p(-rate) + (j * j - j) / (2 * sigma**2)
        second += _log_half_erfc((edge - j) / (math.sqrt(2) * sigma))
        terms += [(sign, first), (sign, second)]
        if max(first, second) < _NEGLIGIBLE and i > order:
            break
        sign *= math.copysign(1.0, order - i)
        log_coefficient += math.log(abs(order - i)) - math.log(i + 1)
        i += 1
    largest = max(log for _, log in terms)
    return largest + math.log(math.fsum(sign * math.exp(log - largest) for sign, log in terms))


def _log_binomial(order: float, i: int) -> float:
    return math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1)


def _log_half_erfc(x: float) -> float:
    """Returns log(erfc(x) / 2); the asymptotic series where erfc is too small for a number."""
    if x < 25:
        return math.log(math.erfc(x) / 2)
    square = x * x
    return -square - math.log(2 * x * math.sqrt(math.pi)) + math.log1p(-0.5 / square + 0.75 / square**2)
