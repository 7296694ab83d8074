"""Labelled rows of a table, checked and split (`framework.data.splits`). Files are read by `framework.data.reading`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.data.reading.rows import read_rows
from framework.data.splits import SplitFiles, same_text
from framework.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row (`framework.data.splits.Record`).

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
        """The texts."""
        return tuple(same_text(text) for text in (self.text, self.pair) if text is not None)

    @property
    def answer(self) -> str:
        """The label."""
        return self.label


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
class TableData(SplitFiles):
    """One labelled text, or pair of texts, a row, of files that `framework.data.reading.rows` reads.

    Attributes:
        text_column: Column, in JSONL key, of the text.
        pair_column: Column of the second text; None for single texts.
        label_column: Column of the label.
        labels: The label set in the order of scores; None finds it in `train`, sorted (by value if all are whole
            numbers).
        where: {column: value}; only rows that have all these values are taken.
    """

    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    labels: list[str | int] | None = None
    where: dict[str, str | int | float] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        files = self.read_files(self._read)
        names = tuple(labels) if labels is not None else self._label_set(files["train"])
        for rows in files.values():
            _check_labels(rows, names)
        report: dict[str, int] = {}
        splits = self.split(files, report)
        _check_several_labels(splits["train"])
        return Table(names, splits, report)

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


def _check_several_labels(rows: list[LabelledText]) -> None:
    if len({row.label for row in rows}) < 2:
        raise DataError(
            f"{rows[0].place}: all {len(rows)} training rows have the label {rows[0].label!r}, but there must be at "
            "least 2 labels to tell apart; correct `label_column` or `where`, or give more rows."
        )


def _check_labels(rows: list[LabelledText], labels: tuple[str, ...]) -> None:
    known = set(labels)
    for row in rows:
        if row.label not in known:
            raise DataError(
                f"{row.place}: the label {row.label!r} is none of {', '.join(labels)}; correct the row, or list all "
                "labels in `labels`."
            )
