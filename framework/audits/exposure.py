"""Exposure of canaries (Carlini et al. 2019, arXiv:1802.08232, section 4.3), by ranks among sampled candidates."""

import math

import numpy as np

WITHOUT_MEMORIZATION = math.log2(math.e)
"""Mean exposure in bits of a model that has not seen the canaries: their ranks are uniform."""


def ranks(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the rank of the score of each canary among its candidates and itself; 1 is the largest score.

    Args:
        own: (canaries,) scores.
        others: (canaries, candidates) scores of the candidates of each canary. A tie counts one half.

    Returns:
        (canaries,) float64 in [1, candidates + 1].
    """
    return 1 + (others > own[:, None]).sum(axis=1) + (others == own[:, None]).sum(axis=1) / 2


def exposures(ranks: np.ndarray, num_candidates: int) -> np.ndarray:
    """Returns exposures in bits: log2(candidates + 1) - log2(rank).

    The paper's logarithm of the number of all candidates, minus that of the rank among all, is estimated by the share
    of the sampled candidates that the canary does not surpass. It is at most log2(candidates + 1).

    Args:
        ranks: (canaries,) ranks, as `ranks` returns them.
        num_candidates: Number of candidates of each canary.
    """
    return np.log2(num_candidates + 1) - np.log2(ranks)


def chance(exposures: np.ndarray) -> float:
    """Returns the probability of at least this mean exposure for a model that has not seen the canaries.

    Ranks are then uniform, so that each exposure in nats is at most exponentially distributed with mean 1, and the sum
    of n of them exceeds s with at most the probability that a Poisson variable with mean s is below n.

    Args:
        exposures: (canaries,) exposures in bits.
    """
    total = float(exposures.sum()) * math.log(2)
    if total <= 0:
        return 1.0
    terms = [k * math.log(total) - total - math.lgamma(k + 1) for k in range(len(exposures))]
    return min(1.0, math.fsum(map(math.exp, terms)))
