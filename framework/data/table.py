"""Labelled rows of a table, checked, freed of repeats and split.

Which split a row belongs to is a hash of its text, so it does not depend on the order of rows, other rows keep their
split when some are added, and equal texts never fall into two splits. The sizes of the splits are therefore close to
their fractions, not exact. Files are read by `framework.data.reading.rows`.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.data.reading.rows import read_rows
from framework.errors import ConfigError, DataError
from framework.random import key

logger = logging.getLogger(__name__)

_UNIT = 2.0**-64


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row.

    Attributes:
        place: File, row and line, for messages.
        text: As in the file.
        pair: The second text; None where the task has one.
        label: As in the file.
    """

    place: str
    text: str
    pair: str | None
    label: str

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for repeats of each other: the texts in Unicode form NFC, runs of white space as one space."""
        texts = (self.text,) if self.pair is None else (self.text, self.pair)
        return tuple(" ".join(unicodedata.normalize("NFC", text).split()) for text in texts)


@dataclass(frozen=True)
class Table:
    """What a TableData holds.

    Attributes:
        labels: The label set, in the order of scores.
        splits: Rows of `train`, and where there are any of `validation` and `test`, in the order of the file.
        report: Rows that were read, and rows that were left out by reason.
    """

    labels: tuple[str, ...]
    splits: dict[str, list[LabelledText]]
    report: dict[str, int]


@dataclass(frozen=True)
class TableData:
    """One labelled text, or pair of texts, a row, of files that `framework.data.reading.rows` reads.

    Attributes:
        train: The training file.
        validation: A file of its own; None takes `validation_fraction` of the rows of `train`.
        test: A file of its own; None takes `test_fraction` of the rows of `train`.
        text_column: Column, in JSONL key, of the text.
        pair_column: Column of the second text; None for single texts.
        label_column: Column of the label.
        labels: The label set in the order of scores; None finds it in `train`, sorted (by value if all are whole
            numbers).
        validation_fraction: Share of the rows of `train`; 0 makes no split.
        test_fraction: Share of the rows of `train`; 0 makes no split.
        deduplicate: Before splitting, leave out repeats of a text, all rows of a text whose labels contradict each
            other, and training rows whose text is in `validation` or `test`. Rows of files of their own all stay.
        where: {column: value}; only rows that have all these values are taken.
        max_train_rows: Only so many rows of `train`, a seeded choice in which a smaller number is part of a larger one.
        split_seed: Decides the splits and the choice.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    labels: list[str | int] | None = None
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    deduplicate: bool = False
    where: dict[str, str | int | float] | None = field(default=None)
    max_train_rows: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 0 and below 1.")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave no rows "
                "for training; lower them until their sum is below 1."
            )
        if self.max_train_rows is not None and self.max_train_rows < 2:
            raise ConfigError(
                f"max_train_rows is {self.max_train_rows}, it must be at least 2, one for each of two labels."
            )
        names = [str(label) for label in self.labels or ()]
        if self.labels is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ConfigError(
                f"labels is {names}, it must name at least 2 different labels, or be null to find them in the data."
            )

    def load(self, labels: Sequence[str] | None = None) -> Table:
        """Reads, checks and splits the rows.

        Args:
            labels: The label set of an earlier run, which then decides instead of the config and the data.

        Raises:
            DataError: A file is missing, empty, not UTF-8 or broken, lacks a column or rows that fit `where`; a text or
                label is empty; a label is outside the set; a split would be empty; all training rows have one label.
        """
        files = {split: self._read(path) for split, path in self._files().items()}
        report = {"rows": sum(map(len, files.values()))}
        names = tuple(labels) if labels is not None else self._label_set(files["train"])
        for rows in files.values():
            _check_labels(rows, names)
        rows = files.pop("train")
        if self.deduplicate:
            rows = self._without_repeats(rows, [row for others in files.values() for row in others], report)
        splits = self._split(rows) | files
        if self.max_train_rows is not None:
            splits["train"] = self._choose(splits["train"], self.max_train_rows)
        self._check_splits(splits)
        return Table(
            names, {split: splits[split] for split in ("train", "validation", "test") if split in splits}, report
        )

    def _files(self) -> dict[str, Path]:
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: Path(path) for split, path in given.items() if path is not None}

    def _read(self, path: Path) -> list[LabelledText]:
        wanted = {column: str(value) for column, value in (self.where or {}).items()}
        texts = [self.text_column] if self.pair_column is None else [self.text_column, self.pair_column]
        rows = []
        for row in read_rows(path, [*texts, self.label_column, *wanted]):
            if any(row.values[column] != value for column, value in wanted.items()):
                continue
            place = f"{path}, {row.place}"
            for column in (*texts, self.label_column):
                if not row.values[column].strip():
                    raise DataError(f"{place}: {column!r} is empty, each row needs one; fill in or remove the row.")
            pair = None if self.pair_column is None else row.values[self.pair_column]
            rows.append(LabelledText(place, row.values[self.text_column], pair, row.values[self.label_column].strip()))
        if not rows:
            raise DataError(f"{path} has no row where {wanted}; correct `where`, or name another file.")
        return rows

    def _label_set(self, rows: list[LabelledText]) -> tuple[str, ...]:
        if self.labels is not None:
            return tuple(str(label) for label in self.labels)
        found = {row.label for row in rows}
        whole_numbers = all(label.removeprefix("-").isdecimal() for label in found)
        return tuple(sorted(found, key=lambda label: (int(label) if whole_numbers else 0, label)))

    def _without_repeats(
        self, rows: list[LabelledText], evaluated: list[LabelledText], report: dict[str, int]
    ) -> list[LabelledText]:
        """The first row of each text that is not evaluated on and whose rows agree on the label."""
        held_out = {row.identity for row in evaluated}
        first: dict[tuple[str, ...], LabelledText] = {}
        contradicted: dict[tuple[str, ...], LabelledText] = {}
        counts: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            identity = row.identity
            counts[identity] += 1
            if first.setdefault(identity, row).label != row.label and identity not in held_out:
                contradicted.setdefault(identity, row)
        kept = [row for identity, row in first.items() if identity not in contradicted and identity not in held_out]
        report["also_evaluated_on"] = sum(counts[identity] for identity in first if identity in held_out)
        report["contradicting"] = sum(counts[identity] for identity in contradicted)
        report["repeated"] = len(rows) - len(kept) - report["also_evaluated_on"] - report["contradicting"]
        if report["contradicting"]:
            identity, other = next(iter(contradicted.items()))
            one = first[identity]
            logger.warning(
                f"{report['contradicting']} rows are left out because equal texts have different labels; for example "
                f"{one.place} has {one.label!r} and {other.place} has {other.label!r}."
            )
        logger.info("%s: %s", self.train, ", ".join(f"{name} {number}" for name, number in report.items()))
        return kept

    def _split(self, rows: list[LabelledText]) -> dict[str, list[LabelledText]]:
        test = self.test_fraction if self.test is None else 0.0
        validation = self.validation_fraction if self.validation is None else 0.0
        splits: dict[str, list[LabelledText]] = {"train": []}
        splits |= {split: [] for split, share in (("validation", validation), ("test", test)) if share > 0}
        for row in rows:
            draw = key(self.split_seed, "split", *row.identity) * _UNIT
            splits["test" if draw < test else "validation" if draw < test + validation else "train"].append(row)
        return splits

    def _choose(self, rows: list[LabelledText], size: int) -> list[LabelledText]:
        ranked = sorted(
            range(len(rows)), key=lambda place: (key(self.split_seed, "choice", *rows[place].identity), place)
        )
        return [rows[place] for place in sorted(ranked[:size])]

    def _check_splits(self, splits: dict[str, list[LabelledText]]) -> None:
        for split, rows in splits.items():
            if not rows:
                raise DataError(
                    f"{self.train}: no row is left for {split}, it needs at least one; give more rows, other "
                    "fractions, or a file of its own."
                )
        found = {row.label for row in splits["train"]}
        if len(found) < 2:
            rows = splits["train"]
            raise DataError(
                f"{rows[0].place}: all {len(rows)} training rows have the label {rows[0].label!r}, but there must be "
                "at least 2 labels to tell apart; correct `label_column` or `where`, or give more rows."
            )


def _check_labels(rows: list[LabelledText], labels: tuple[str, ...]) -> None:
    known = set(labels)
    for row in rows:
        if row.label not in known:
            raise DataError(
                f"{row.place}: the label {row.label!r} is none of {', '.join(labels)}; correct the row, or list all "
                "labels in `labels`."
            )
