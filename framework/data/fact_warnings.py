"""Warnings about the data of a run: bad rows, texts that are cut, labels that look wrong."""

import unicodedata
from collections.abc import Iterator, Mapping

from framework.data.facts import SplitFacts

_CUT_SHARE, _LOST_SHARE = 0.25, 0.10
_FEWEST_LABELS = 10
_SHOWN = 3
_MISSING = frozenset({"nan", "NaN", "NAN", "<NA>", "NaT", "null", "NULL", "None"})
"""Texts that programs write for missing values."""


def warnings_of(splits: Mapping[str, SplitFacts]) -> list[str]:
    """Returns warnings about suspicious data of a run.

    Args:
        splits: Facts by split; only the labels of `train` are checked.
    """
    warnings: list[str] = []
    for split, facts in splits.items():
        warnings += [*_skipped(facts), *_cut(split, facts), *facts.warnings]
        if split == "train":
            warnings += _labels(facts)
    return warnings


def _skipped(facts: SplitFacts) -> Iterator[str]:
    if facts.skipped:
        yield (
            f"{facts.num_skipped:,} of {facts.read:,} {facts.unit} of {facts.file} are bad and are skipped. For "
            f"example: {facts.skipped[0]}"
        )


def _cut(split: str, facts: SplitFacts) -> Iterator[str]:
    cutting = facts.cutting
    if cutting.cut > _CUT_SHARE * cutting.texts or cutting.lost_share > _LOST_SHARE:
        yield (
            f"{cutting.cut:,} of {cutting.texts:,} texts of {split} are cut{cutting.limit}: {cutting.lost_share:.0%} "
            "of all tokens are lost. Raise the maximum length of the task if the model has enough positions."
        )


def _labels(facts: SplitFacts) -> Iterator[str]:
    labels = facts.labels
    if len(labels) >= max(_FEWEST_LABELS, facts.rows / 2):
        yield (
            f"train has {len(labels):,} different labels in {facts.rows:,} {facts.unit}. Learning a label takes "
            "several rows. Check that data.label_column is not a column of ids or texts."
        )
        return
    unused = [label for label, number in labels.items() if number == 0]
    if unused:
        yield f"No row of train has {_listed(unused)}. A label without training rows is never learned. Add rows."
    missing = [label for label in labels if label in _MISSING]
    if missing:
        yield (
            f"train has {_listed(missing)}, a common spelling of a missing value. It is trained as a label. "
            "If these rows have no label, leave the cells empty or remove the rows."
        )
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(_normal_form(label), []).append(label)
    for group in alike.values():
        if len(group) > 1:
            yield (
                f"train has {_listed(group)}, which read alike but are {len(group)} labels. If they mean the same, "
                "write them the same way."
            )


def _normal_form(label: str) -> str:
    """Returns a normal form: labels that differ in Unicode form, case, white space or number format share it."""
    try:
        return repr(float(label))
    except ValueError:
        return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _listed(labels: list[str]) -> str:
    """Formats labels for a message; labels that look the same on a screen are shown by code points."""
    looks = [unicodedata.normalize("NFC", label) for label in labels]
    write = ascii if len(set(looks)) < len(looks) else repr
    more = f" and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else ""
    return f"the label{'s' if len(labels) > 1 else ''} {', '.join(map(write, labels[:_SHOWN]))}{more}"
