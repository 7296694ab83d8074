"""Labelled rows of a table, checked and split (`splits`). Files are read by `framework.data.reading`."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import Answer, AnswerKind, one_label
from framework.data.examples.splits import FileRecords, ReadSplits, SplitFiles, same_text
from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        place: File, row and line, for messages.
        text: As in the file.
        pair: The second text; None where the task has one.
        label: The label as in the file; a tuple of labels, or a number, where such are read.
    """

    place: str
    text: str
    pair: str | None
    label: Answer

    @property
    def identity(self) -> tuple[str, ...]:
        """The texts."""
        return tuple(same_text(text) for text in (self.text, self.pair) if text is not None)

    @property
    def answer(self) -> Hashable:
        """The label."""
        return self.label


@dataclass(frozen=True)
class TableData(SplitFiles):
    """One labelled text, or pair of texts, a row, of files that `framework.data.reading.rows` reads.

    Attributes:
        text_column: Column, in JSONL key, of the text.
        pair_column: Column of the second text; None for single texts.
        label_column: Column of the label, the labels, or the number.
        labels: The label set in the order of scores; None finds it in the files, sorted (by value if all are whole
            numbers).
        where: {column: value}; only rows that have all these values are taken.
        format: Format of the files; None: the defaults of TableFormat.
        on_bad_row: What is done about a row that is broken, whose text is empty, or whose label is empty, no number
            where one is needed, or outside the label set: "error", or "skip", which counts it.
    """

    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    labels: list[str | int] | None = None
    where: dict[str, str | int | float] | None = field(default=None)
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_train_rows is not None and self.max_train_rows < 2:
            raise ConfigError(
                f"data.max_train_rows is {self.max_train_rows}, it must be at least 2, one for each of two labels."
            )
        names = [str(label) for label in self.labels or ()]
        if self.labels is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ConfigError(
                f"data.labels is {names}, it must name at least 2 different labels, or be null to find them in "
                "the data."
            )

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the columns of the text and of the second text."""
        return {"text": self.text_column} | ({} if self.pair_column is None else {"pair": self.pair_column})

    def load(self, labels: Sequence[str] | None = None, answers: AnswerKind | None = None) -> ReadSplits[LabelledText]:
        """Reads, checks and splits the rows.

        Args:
            labels: The label set of an earlier run, which then decides instead of the config and the data.
            answers: What the cells of the label column are; None: one label each.

        Raises:
            DataError: A file is missing, empty, in another encoding or broken, lacks a column or rows that fit `where`;
                a row is bad and not to be skipped; a split would be empty; all training rows have one answer.
        """
        answers = answers or one_label()
        read = self.read_files(lambda path, reading: self._read(path, answers, reading), self.on_bad_row)
        names = tuple(labels) if labels is not None else self._label_set(read, answers)
        if answers.has_labels:
            known = {*names, *answers.outside}
            for split in read.records:
                read.checked(split, lambda row: _known(row, names, known, answers))
        table = self.split(read, names)
        if labels is None:  # a file that is only evaluated may have one label
            _check_several_answers(table.splits["train"])
        return table

    def _read(self, path: Path, answers: AnswerKind, reading: Reading) -> list[LabelledText]:
        wanted = {column: str(value) for column, value in (self.where or {}).items()}
        texts = [self.text_column] if self.pair_column is None else [self.text_column, self.pair_column]
        lists = [self.label_column] if answers.has_several else []
        rows = []
        columns = [*texts, self.label_column, *wanted]
        for row in read_rows(path, columns, reading, self.format, lists):
            if any(row.values[column] != value for column, value in wanted.items()):
                continue
            try:
                rows.append(self._labelled(f"{path}, {row.place}", row.values, texts, answers))
            except DataError as error:
                reading.bad_row(error)
        if not rows and not reading.skipped:
            raise DataError(f"{path} has no row where {wanted}; correct `where`, or name another file.")
        return rows

    def _labelled(self, place: str, values: Mapping[str, str], texts: list[str], answers: AnswerKind) -> LabelledText:
        for column in texts if answers.has_several else (*texts, self.label_column):
            if not values[column].strip():
                raise DataError(f"{place}: {column!r} is empty, each row needs one; fill in or remove the row.")
        cell = values[self.label_column].strip()
        try:
            answer = answers.read(cell)
        except ValueError as error:
            raise DataError(
                f"{place}: {self.label_column!r} is {cell!r}, it {error}; correct or remove the row."
            ) from error
        return LabelledText(place, values[texts[0]], values[texts[1]] if len(texts) > 1 else None, answer)

    def _label_set(self, read: FileRecords[LabelledText], answers: AnswerKind) -> tuple[str, ...]:
        if self.labels is not None and answers.has_labels:
            return tuple(str(label) for label in self.labels)
        found = read.found_labels(lambda row: answers.labels(row.label), answers.outside)
        whole_numbers = all(label.removeprefix("-").isdecimal() for label in found)
        return tuple(sorted(found, key=lambda label: (int(label) if whole_numbers else 0, label)))


def _check_several_answers(rows: list[LabelledText]) -> None:
    if len({row.label for row in rows}) < 2:
        raise DataError(
            f"{rows[0].place}: all {len(rows)} training rows have the label {rows[0].label!r}, but there must be at "
            "least 2 labels to tell apart; correct `label_column` or `where`, or give more rows."
        )


def _known(row: LabelledText, labels: Sequence[str], known: Collection[str], answers: AnswerKind) -> LabelledText:
    """Returns the row if all of its labels are known.

    Raises:
        DataError: A label is unknown.
    """
    for label in answers.labels(row.label):
        if label not in known:
            raise DataError(
                f"{row.place}: the label {label!r} is none of {', '.join(labels)}; correct the row, or list all labels "
                "in `labels`."
            )
    return row
