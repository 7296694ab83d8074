"""Lower bound on epsilon from one run (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846)."""

import math

import numpy as np


def upper_tails(number: int, probability: float) -> np.ndarray:
    """Returns (number + 2,) P[Binomial(number, probability) >= k] for k from 0 to number + 1."""
    k = np.arange(number + 1)
    factorials = np.array([math.lgamma(n + 1) for n in range(number + 1)])
    logs = factorials[-1] - factorials - factorials[::-1] + k * math.log(probability)
    logs += (number - k) * math.log1p(-probability)
    return np.append(np.cumsum(np.exp(logs)[::-1])[::-1], 0.0)


def chance_of(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Bounds the probability of at least this many correct guesses under (epsilon, delta)-DP (the main theorem).

    Args:
        correct: Number of correct guesses.
        guesses: Number of guesses.
        canaries: Number of canaries, each included with probability 1/2.
        epsilon: Epsilon of the guarantee.
        delta: Delta of the guarantee.
    """
    tails = upper_tails(guesses, 1 / (1 + math.exp(-epsilon)))
    fewer = np.arange(1, correct + 1)
    largest = ((tails[correct - fewer] - tails[correct]) / fewer).max(initial=0.0)
    return min(1.0, float(tails[correct] + 2 * canaries * delta * largest))


def epsilon_above(correct: int, guesses: int, canaries: int, delta: float, error: float = 0.05) -> float:
    """Returns the largest epsilon, to 1e-6, that the guesses refute with confidence 1 - error; 0: none."""
    low, high = 0.0, 50.0
    if chance_of(correct, guesses, canaries, low, delta) > error:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if chance_of(correct, guesses, canaries, middle, delta) > error:
            high = middle
        else:
            low = middle
    return low


def correct_guesses(scores: np.ndarray, is_included: np.ndarray, guesses: int) -> int:
    """Counts the correct guesses that the highest scores are included and the lowest are not, half of each."""
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(is_included[order[-half:]].sum() + (~is_included[order[:half]]).sum())
