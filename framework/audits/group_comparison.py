"""Compares the groups of a grouping: metrics, rates of labels, their differences, and permutation tests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework.audits.group_rates import (
    LabelRates,
    bootstrap_weights,
    disparities,
    extreme_disparities,
    joined_rates,
    label_rates,
)
from framework.audits.grouping import Grouping
from framework.audits.intervals import Interval, percentiles
from framework.audits.item_metrics import RowMetric
from framework.random import generator

_MAX_DRAWS = 2_000_000
"""Numbers in a block of permutations: 16 MB."""

_TIE = 1e-12
"""Difference of two disparities that is rounding."""


@dataclass(frozen=True)
class Labels:
    """Predicted and expected labels of all rows.

    Attributes:
        names: Names of the labels.
        predicted: (rows, labels) True for predicted labels.
        expected: (rows, labels) True for labels of the data.
    """

    names: Sequence[str]
    predicted: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class Compared:
    """One number of a comparison.

    Attributes:
        group: Name of the group; None: a number for all groups.
        measure: Name of the metric, rate or difference.
        label: Label of a rate; None for metrics.
        value: Value; NaN if it is undefined.
        interval: Bootstrap interval; None if the value is undefined.
        p: Probability of a value at least as unequal if the groups did not matter; None if it is not tested.
    """

    group: str | None
    measure: str
    label: str | None
    value: float
    interval: Interval | None
    p: float | None = None


def compare_metrics(
    grouping: Grouping, metrics: Mapping[str, RowMetric], num_samples: int, seed: int
) -> Iterator[Compared]:
    """Yields each metric of each group, and the difference of the largest and the smallest value.

    Args:
        grouping: Groups.
        metrics: Metrics by name.
        num_samples: Number of resamplings.
        seed: Seed of the resamplings.
    """
    for name, states in metrics.items():
        values, samples = [], []
        for group, items in grouping.members.items():
            values.append(states.values(items, np.ones((1, len(items))))[0])
            blocks = bootstrap_weights(len(items), num_samples, seed, grouping.name, group)
            samples.append(np.concatenate([states.values(items, weights) for weights in blocks]))
            yield Compared(group, name, None, float(values[-1]), percentiles(samples[-1]))
        # The interval is that of the two extreme groups, so that it may contain 0.
        order = np.argsort(values, kind="stable").tolist()
        interval = percentiles(samples[order[-1]] - samples[order[0]])
        yield Compared(None, f"{name}_difference", None, float(np.ptp(values)), interval)


def compare_labels(grouping: Grouping, labels: Labels, num_samples: int, seed: int) -> Iterator[Compared]:
    """Yields the rates of each label in each group, and the differences and ratios of the groups with their p-values.

    Args:
        grouping: Groups.
        labels: Labels of all rows.
        num_samples: Number of resamplings and of permutations.
        seed: Seed of both.
    """
    once, samples = [], []
    for group, items in grouping.members.items():
        own = labels.predicted[items], labels.expected[items]
        once.append(label_rates(np.ones((1, len(items))), *own))
        blocks = bootstrap_weights(len(items), num_samples, seed, grouping.name, group)
        samples.append(joined_rates([label_rates(weights, *own) for weights in blocks]))
        for measure, value, drawn in (
            ("selection_rate", once[-1].selection, samples[-1].selection),
            ("true_positive_rate", once[-1].true_positive, samples[-1].true_positive),
            ("false_positive_rate", once[-1].false_positive, samples[-1].false_positive),
        ):
            for index, label in enumerate(labels.names):
                yield Compared(group, measure, label, float(value[0, index]), percentiles(drawn[:, index]))
    observed, drawn_values = disparities(once), extreme_disparities(once, samples)
    permuted = permuted_disparities(grouping, labels, num_samples, seed)
    for measure, value in observed.items():
        for index, label in enumerate(labels.names):
            # A small ratio is a large disparity.
            sign = -1 if measure.endswith("ratio") else 1
            reached = sign * permuted[measure][:, index] >= sign * value[0, index] - _TIE
            is_defined = bool(np.isfinite(value[0, index]))
            p = (1 + int(reached.sum())) / (1 + num_samples) if is_defined else None
            interval = percentiles(drawn_values[measure][:, index]) if is_defined else None
            yield Compared(None, measure, label, float(value[0, index]), interval, p)


def permuted_disparities(grouping: Grouping, labels: Labels, num_samples: int, seed: int) -> dict[str, np.ndarray]:
    """Returns the disparities of groups of the same sizes that are drawn at random.

    For equalized odds, rows change groups only with rows of the same expected labels.

    Args:
        grouping: Groups.
        labels: Labels of all rows.
        num_samples: Number of permutations.
        seed: Seed of the permutations.

    Returns:
        (permutations, labels) by name, as `disparities`.
    """
    members = list(grouping.members.values())
    items = np.concatenate(members)
    groups = np.repeat(np.arange(len(members)), [len(each) for each in members])
    predicted, expected = labels.predicted[items], labels.expected[items]
    _, strata = np.unique(expected, axis=0, return_inverse=True)
    found: dict[str, np.ndarray] = {}
    for prefix, levels in (("demographic_parity", np.zeros(len(items), dtype=np.int64)), ("equalized_odds", strata)):
        random = generator(seed, grouping.name, prefix, "permutations")
        parts: list[list[LabelRates]] = [[] for _ in members]
        for block in _permuted(groups, levels.ravel(), num_samples, random):
            for group, own in enumerate(parts):
                own.append(label_rates((block == group).astype(np.float64), predicted, expected))
        drawn = disparities([joined_rates(own) for own in parts])
        found |= {name: values for name, values in drawn.items() if name.startswith(prefix)}
    return found


def _permuted(
    groups: np.ndarray, strata: np.ndarray, num_samples: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yields blocks of (permutations, rows) groups, permuted among rows of the same stratum."""
    order = np.argsort(strata, kind="stable")
    size = max(1, _MAX_DRAWS // len(groups))
    for start in range(0, num_samples, size):
        draws = random.random((min(size, num_samples - start), len(groups)))
        block = np.empty(draws.shape, dtype=np.int64)
        # Rows in random order within their stratum receive the groups of the stratum.
        block[np.arange(len(draws))[:, None], np.lexsort((draws, np.broadcast_to(strata, draws.shape)))] = groups[order]
        yield block
