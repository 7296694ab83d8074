"""Membership inference: does the loss of a row tell whether the model was trained on it?

The attack takes rows with a small loss for members of the training data (Yeom et al. 2018, arXiv:1709.01604, section
3.3). It is reported as Carlini et al. 2022 (arXiv:2112.03570) recommend: members found at few false alarms, besides the
area under the ROC curve. Attacks that train shadow models, such as theirs, find more. The results are lower bounds.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from framework.audits.audit import Finding, ModelAudit, Subject
from framework.audits.intervals import Interval, wilson
from framework.audits.row_losses import ChosenItems, ItemLosses, has_item_losses, item_losses, items_of_both
from framework.audits.separation import (
    FoundMembers,
    area_interval,
    area_under_curve,
    found_members,
    non_members_needed,
)
from framework.data.planning.plan import SequenceSource
from framework.errors import ConfigError, DataError, check_at_least
from framework.modules.inference import Inference
from framework.random import key
from framework.tasks.pretraining.features import PretrainingSource
from framework.tasks.pretraining.task import PretrainingTask

_ALL = "all"

_LIMITS = {"1_percent": 10, "0.1_percent": 1}
"""Rates of false alarms in thousandths, by the end of the name of their measure."""

_NO_LEAK = 0.5

_LEAST = 20
"""Smallest number of members, and of non-members, of a part with numbers."""

_NUM_LENGTH_PARTS = 4

_Part = dict[str, str | int | float | None]


class Membership(ModelAudit):
    """Membership inference from losses, on equal numbers of training rows and of rows of another split.

    The rate of the audit is the area under the ROC curve minus 0.5, or 0 if it is smaller.

    Args:
        max_rows: Largest number of members, and of non-members; both are seeded samples. None: all.

    Raises:
        ConfigError: The number is too small.
    """

    def __init__(self, max_rows: int | None = 5000) -> None:
        if max_rows is not None:
            check_at_least("audit.membership.max_rows", max_rows, _LEAST)
        self._max_rows = max_rows

    def check(self, subject: Subject) -> None:
        """Reads both splits and draws the samples.

        Raises:
            ConfigError: The task has no losses of single rows, the split is `train`, or the training rows are unknown.
            DataError: A split has too few rows, or a file cannot be read.
        """
        task = subject.task
        if not has_item_losses(task):
            raise ConfigError(
                f"{type(task).__name__} has no losses of single rows. The audit membership compares such losses. Audit "
                "a run of pre-training, classification, regression, relation extraction, question answering, token "
                "classification or multiple choice."
            )
        if subject.split == "train":
            raise ConfigError(
                "split=train contains members. The audit membership compares the training rows with rows that the "
                "model was not trained on. Choose split=validation or split=test, or give data.test=FILE."
            )
        training, held_out = subject.training, subject.source
        self._names = task.single_labels
        self._split = subject.split
        self._notes: list[str] = []
        if isinstance(task, PretrainingTask) and isinstance(training, PretrainingSource):
            training = training.for_evaluation(task.sequences.eval_mask_rate)
            candidates = np.arange(len(held_out))
        else:
            is_member = items_of_both(training, held_out)
            candidates = np.flatnonzero(~is_member)
            if is_member.any():
                self._notes.append(
                    f"{int(is_member.sum()):,} of {len(held_out):,} rows of {subject.split} are left out, because a "
                    "training row has the same tokens."
                )
        number = min(len(training), len(candidates), self._max_rows or len(candidates))
        if number < _LEAST:
            raise DataError(
                f"the training data has {len(training):,} rows, and {subject.split} has {len(candidates):,} that are "
                f"not among them. The audit membership needs at least {_LEAST} of each. Give a larger split, for "
                "example data.test=FILE."
            )
        self._members = _sample(training, np.arange(len(training)), number, subject.seed, "members")
        self._others = _sample(held_out, candidates, number, subject.seed, "non-members")

    def measure(self, inference: Inference) -> Finding:
        """Computes all losses and compares them. Collective: all ranks must call."""
        computed = [item_losses(inference, source) for source in (self._members, self._others)]
        members, others = (each.finite() for each in computed)
        if min(len(members.losses), len(others.losses)) < _LEAST:
            raise DataError(
                f"{len(members.losses):,} members and {len(others.losses):,} non-members have a finite loss. The audit "
                f"membership needs at least {_LEAST} of each. Check the weights and the targets of the splits."
            )
        num_without = sum(int(np.isnan(each.losses).sum()) for each in computed)
        too_small: list[str] = []
        parts = list(_measures(_ALL, members.losses, others.losses, True))
        for name, own, other in _parts(members, others, self._names):
            if min(len(own), len(other)) < _LEAST:
                too_small.append(f"{name} ({len(own)} and {len(other)})")
            else:
                parts += _measures(name, own, other, False)
        lengths = _area(_ALL, "auc_of_shortness", members.lengths, others.lengths)
        area, limits = _area_of(members.losses, others.losses)
        notes = [*self._notes, *_limit_notes(members.losses, others.losses), *_length_notes(lengths)]
        if num_without:
            notes.append(f"{num_without:,} rows without targets or with a loss that is not finite are left out.")
        if too_small:
            notes.append(
                f"Parts with fewer than {_LEAST} members or non-members have no numbers: {'; '.join(too_small)}."
            )
        notes.append(
            "This attack uses the loss of one model. Attacks with shadow models find more members, so the numbers are "
            "lower bounds. A model that trained for less than one epoch has not seen every training row."
        )
        return Finding(
            measure="area under the ROC curve of the loss attack, above 0.5",
            rate=max(area - _NO_LEAK, 0.0),
            interval=Interval(max(limits.low - _NO_LEAK, 0.0), max(limits.high - _NO_LEAK, 0.0), limits.method),
            num_cases=len(members.losses) + len(others.losses),
            summary=f"The loss tells training rows from rows of {self._split} with an area under the ROC curve of "
            f"{area:.3f} ({limits.low:.3f} to {limits.high:.3f}; 0.5 tells nothing). The mean loss is "
            f"{members.losses.mean():.3f} and {others.losses.mean():.3f}. "
            + _found_sentence(found_members(members.losses, others.losses, _LIMITS["1_percent"])),
            parts=[*parts, lengths],
            notes=notes,
        )


def _sample(source: SequenceSource, items: np.ndarray, number: int, seed: int, name: str) -> ChosenItems:
    random = np.random.Generator(np.random.Philox(key=key(seed, "membership", name)))
    return ChosenItems(source, np.sort(random.choice(items, number, replace=False)))


def _parts(
    members: ItemLosses, others: ItemLosses, names: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields the name of each class and of each range of lengths, with the losses of its members and non-members."""
    for index, name in enumerate(names):
        yield f"class {name}", members.losses[members.labels == index], others.losses[others.labels == index]
    pooled = np.concatenate([members.lengths, others.lengths])
    inner = np.quantile(pooled, np.arange(1, _NUM_LENGTH_PARTS) / _NUM_LENGTH_PARTS, method="lower")
    edges = np.unique([pooled.min() - 1, *inner, pooled.max()]).astype(np.int64).tolist()
    for low, high in pairwise(edges):
        own, other = ((each.lengths > low) & (each.lengths <= high) for each in (members, others))
        name = f"{high} tokens" if low + 1 == high else f"{low + 1} to {high} tokens"
        yield name, members.losses[own], others.losses[other]


def _area_of(members: np.ndarray, others: np.ndarray) -> tuple[float, Interval]:
    area = area_under_curve(members, others)
    return area, area_interval(area, len(members), len(others))


def _area(rows: str, measure: str, members: np.ndarray, others: np.ndarray) -> _Part:
    area, limits = _area_of(members, others)
    return _part(rows, measure, area, limits, members, others)


def _measures(rows: str, members: np.ndarray, others: np.ndarray, is_all: bool) -> Iterator[_Part]:
    """Yields the measures of one part. Measures that need more non-members have no value, and only in the whole."""
    yield _area(rows, "auc", members, others)
    for name, per_thousand in _LIMITS.items():
        found = found_members(members, others, per_thousand)
        if found is not None:
            yield _part(rows, f"members_found_at_{name}", found.rate, found.interval, members, others)
        elif is_all:
            yield _part(rows, f"members_found_at_{name}", None, None, members, others)


def _part(
    rows: str, measure: str, value: float | None, limits: Interval | None, members: np.ndarray, others: np.ndarray
) -> _Part:
    return {
        "rows": rows,
        "measure": measure,
        "value": value,
        "low": None if limits is None else limits.low,
        "high": None if limits is None else limits.high,
        "members": len(members),
        "non_members": len(others),
    }


def _found_sentence(found: FoundMembers | None) -> str:
    if found is None:
        return "There are too few non-members for a rate of 1 % false alarms."
    limits = found.interval
    return f"At 1 % false alarms it finds {found.rate:.1%} of the members ({limits.low:.1%} to {limits.high:.1%})."


def _limit_notes(members: np.ndarray, others: np.ndarray) -> list[str]:
    """Returns what the rates of members found rest on."""
    notes = []
    for name, per_thousand in _LIMITS.items():
        percent = name.replace("_percent", " %")
        found = found_members(members, others, per_thousand)
        if found is None:
            notes.append(
                f"{percent} false alarms cannot be measured with {len(others):,} non-members; it needs "
                f"{non_members_needed(per_thousand):,}."
            )
            continue
        limits = wilson(found.false_alarms, len(others))
        assert limits is not None
        notes.append(
            f"The threshold for {percent} false alarms has {found.false_alarms:,} among {len(others):,} non-members, "
            f"which is compatible with {limits.low:.2%} to {limits.high:.2%}. The intervals of the members found hold "
            "at this threshold."
        )
    return notes


def _length_notes(lengths: _Part) -> list[str]:
    area, low, high = lengths["value"], lengths["low"], lengths["high"]
    assert isinstance(area, float) and isinstance(low, float) and isinstance(high, float)
    if low <= _NO_LEAK <= high:
        return []
    return [
        f"Lengths alone tell the two splits apart (auc_of_shortness {area:.3f}, {low:.3f} to {high:.3f}). The splits "
        "differ in more than membership, and a part of the measured leak may be this difference. Compare rows of equal "
        "length."
    ]
