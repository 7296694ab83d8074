"""Association tests of word sets: WEAT (Caliskan et al. 2017, doi:10.1126/science.aal4230).

SEAT (May et al. 2019, arXiv:1903.10561) is the same test on sentences with these words.
"""

from itertools import chain, combinations
from math import comb

import numpy as np

from framework.random import generator

_MAX_EXACT = 50_000
"""Most partitions that are enumerated; more are sampled."""

_BLOCK = 4096

_TIE = 1e-9
"""Difference of a test statistic, relative to its terms, that is a tie. Sums depend on the order of their terms."""


def associations(words: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns how much closer each word is to the first attributes than to the second ones.

    Args:
        words: (words, hidden) embeddings.
        first: (attributes, hidden) embeddings.
        second: (attributes, hidden) embeddings.

    Returns:
        (words,) float64, mean cosine with `first` minus mean cosine with `second`, in [-2, 2].
    """
    words, first, second = (_unit(each) for each in (words, first, second))
    return (words @ first.T).mean(axis=1) - (words @ second.T).mean(axis=1)


def effect_size(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the difference of the mean associations of two target sets in standard deviations of all targets.

    Args:
        one: (targets,) associations of the first target set.
        other: (targets,) associations of the second target set.

    Returns:
        Effect size; the standard deviation divides by targets - 1, as the code of May et al. does. 0 if all
        associations are equal.
    """
    spread = float(np.concatenate([one, other]).std(ddof=1))
    return float(one.mean() - other.mean()) / spread if spread > 0 else 0.0


def permutation_p(one: np.ndarray, other: np.ndarray, num_samples: int, *key_parts: int | str) -> tuple[float, bool]:
    """Returns the one-sided p-value of the difference between two target sets.

    It is the share of the partitions of all targets into sets of the same sizes whose difference is at least the
    observed one. Partitions are enumerated if there are at most 50,000. Otherwise they are sampled, and the observed
    partition counts as one of the samples (Phipson, Smyth 2010, arXiv:1603.05766).

    Args:
        one: (targets,) associations of the first target set.
        other: (targets,) associations of the second target set.
        num_samples: Number of sampled partitions.
        key_parts: Seed and names that identify the test.

    Returns:
        p-value, and True if all partitions were enumerated.
    """
    values, size = np.concatenate([one, other]), len(one)
    # The sum of all targets is fixed, so that the sum of the first set orders the partitions.
    threshold = one.sum() - _TIE * np.abs(values).sum()
    if comb(len(values), size) <= _MAX_EXACT:
        chosen = np.fromiter(chain.from_iterable(combinations(range(len(values)), size)), dtype=np.int64)
        return float((values[chosen.reshape(-1, size)].sum(axis=1) >= threshold).mean()), True
    random = generator(*key_parts, "permutations")
    count = 0
    for start in range(0, num_samples, _BLOCK):
        draws = random.random((min(_BLOCK, num_samples - start), len(values)))
        chosen = np.argpartition(draws, size - 1, axis=1)[:, :size]
        count += int((values[chosen].sum(axis=1) >= threshold).sum())
    return (1 + count) / (1 + num_samples), False


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
