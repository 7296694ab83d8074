"""Reads labelled rows of tables, checks them and splits them (`splits`). `framework.data.reading` reads the files."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from framework.data.canaries import CanarySettings, draw_canaries, draw_labels, in_copies
from framework.data.examples.answers import Answer, AnswerKind, one_label, parse_list, read_cell, require_text
from framework.data.examples.splits import FileRecords, ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError, counted


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages.
        text: Text as in the file.
        pair: Second text; None for single texts.
        label: Label as in the file, a tuple of labels, or a number, depending on the AnswerKind.
        group: Group of the row; None: the data has no groups.
    """

    location: str
    text: str
    pair: str | None
    label: Answer
    group: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalised texts."""
        return tuple(same_text(text) for text in (self.text, self.pair) if text is not None)

    @property
    def answer(self) -> Hashable:
        """Returns the label, the labels or the number."""
        return self.label

    def masked(self, masking: TextMasking) -> "LabelledText":
        """Returns the row with masked texts.

        Raises:
            DataError: The label or the group is personal data. Metrics and reports name labels and groups.
        """
        labels = [self.label] if isinstance(self.label, str) else self.label if isinstance(self.label, tuple) else ()
        for name, values in (("label", labels), ("group", [self.group] if self.group is not None else ())):
            if any(masking.text(value) != value for value in values):
                raise DataError(
                    f"{self.location}: the {name} is personal data. Metrics and reports name each {name}. Replace it "
                    "by a pseudonym, or choose another column."
                )
        pair = None if self.pair is None else masking.text(self.pair)
        return replace(self, text=masking.text(self.text), pair=pair)


@dataclass(frozen=True)
class TableData(SplitFiles):
    """Files of one labelled text, or pair of texts, per row, which `framework.data.reading.rows` reads.

    Attributes:
        text_column: Column of the text; in JSONL, its key.
        pair_column: Column of the second text; None for single texts.
        label_column: Column of the label, the labels, or the number.
        labels: Label set in the order of scores; None: all labels of the files, sorted (by value if all are integers).
        where: {column: value}; only rows with all these values are used.
        group_column: Column of the group of a row, or several columns, whose values are joined by commas; None: rows
            have no groups.
        balance: "group": in each epoch of training all groups have the same number of rows; None: rows are used as they
            are.
        canaries: Number of canaries among the training rows (`framework.data.canaries`), with `split_seed`; 0: none.
        canary_repeats: Numbers of their copies, which they take in turn.
        list_separator: Text between the items of a text that is a list in JSON; None: lists of texts are bad rows.
        format: Format of the files; None: the defaults of TableFormat.
        on_bad_row: Handling of a bad row: "error", or "skip", which counts it. A row is bad if it is broken, if a text
            or its label is empty, or if its label is not in the label set or is not the number that the task needs.
    """

    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    labels: list[str | int] | None = None
    where: dict[str, str | int | float] | None = field(default=None)
    group_column: str | list[str] | None = None
    balance: Literal["group"] | None = None
    canaries: int = 0
    canary_repeats: list[int] = field(default_factory=lambda: [1, 4, 16])
    list_separator: str | None = None
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_train_rows is not None and self.max_train_rows < 2:
            raise ConfigError(
                f"data.max_train_rows is {self.max_train_rows}. Training needs at least 2 rows, one for each of two "
                "labels. Raise it, or use null to keep all rows."
            )
        if not all(self.group_columns):
            raise ConfigError(
                f"data.group_column is {self.group_column!r}. It must name a column, or a list of columns. Name "
                "them, or use null or [] for data without groups."
            )
        names = [str(label) for label in self.labels or ()]
        if self.labels is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ConfigError(
                f"data.labels is {names}. It must name at least 2 different labels. Correct it, or use null to take "
                "the labels from the files."
            )

        if self.canary_settings is not None and (self.pair_column is not None or self.group_columns):
            key = "data.pair_column" if self.pair_column is not None else "data.group_column"
            raise ConfigError(
                f"data.canaries is {self.canaries}, and {key} is set. A canary is one text with a label, and has no "
                f"second text and no group. Set data.canaries=0 or {key}=null."
            )

    @property
    def canary_settings(self) -> CanarySettings | None:
        """Returns the settings of the canaries; None: none.

        Raises:
            ConfigError: They cannot be used.
        """
        if self.canaries == 0:
            return None
        return CanarySettings(self.canaries, tuple(self.canary_repeats), self.split_seed, "data")

    def canary_rows(self, tokenizer: Tokenizer, labels: Sequence[str]) -> list[LabelledText]:
        """Returns the training rows of the canaries, which depend on the config, the vocabulary and the labels alone.

        Args:
            tokenizer: Tokenizer of the model.
            labels: Label set in the order of scores.

        Raises:
            ConfigError: The vocabulary has too few words.
        """
        settings = self.canary_settings
        if settings is None:
            return []
        canaries, chosen = draw_canaries(settings, tokenizer), draw_labels(settings, labels)
        return [
            LabelledText(f"canary {index + 1}, copy {copy + 1}", canaries[index].text, None, chosen[index])
            for index, copy in in_copies(canaries)
        ]

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the columns of the text and of the second text."""
        return {"text": self.text_column} | ({} if self.pair_column is None else {"pair": self.pair_column})

    @property
    def group_columns(self) -> list[str]:
        """Returns the columns whose values together are the group of a row; empty without groups."""
        if self.group_column is None:
            return []
        return [self.group_column] if isinstance(self.group_column, str) else list(self.group_column)

    def load(self, labels: Sequence[str] | None = None, answers: AnswerKind | None = None) -> ReadSplits[LabelledText]:
        """Reads, checks and splits the rows.

        Args:
            labels: Label set of an earlier run, which overrides the config and the files; None: no such set.
            answers: Parser of the label column; None: one label per cell.

        Raises:
            DataError: A file is missing, empty, in another encoding or broken, or lacks a column or rows that match
                `where`; a row is bad and `on_bad_row` is "error"; a split would be empty; all training rows have the
                same answer.
        """
        answers = answers or one_label()
        read = self.read_files(lambda path, reading: self._read(path, answers, reading), self.on_bad_row)
        self.mask(read)  # before labels are collected, which must not be personal data
        names = tuple(labels) if labels is not None else self._label_set(read, answers)
        if answers.has_labels:
            known = {*names, *answers.outside}
            for split in read.records:
                read.checked(split, lambda row: _known(row, names, known, answers))
        table = self.split(read, names)
        if labels is None:  # a file that is only evaluated may have a single label
            _check_several_answers(table.splits["train"])
        return table

    def _read(self, path: Path, answers: AnswerKind, reading: Reading) -> list[LabelledText]:
        return self._read_rows(path, answers, reading, self._labelled)

    def _read_rows(
        self, path: Path, answers: AnswerKind, reading: Reading, labelled: Callable[..., LabelledText]
    ) -> list[LabelledText]:
        """Reads the rows of a file that match `where`, each by a function with the arguments of `_labelled`."""
        where = {column: str(value) for column, value in (self.where or {}).items()}
        fields = list(self.field_columns.values())
        lists = [self.label_column] if answers.has_several else []
        lists += fields if self.list_separator is not None else []
        rows = []
        columns = list(dict.fromkeys([*fields, self.label_column, *where, *self.group_columns]))
        for row in read_rows(path, columns, reading, self.format, lists):
            if any(row.values[column] != value for column, value in where.items()):
                continue
            with reading.handling_bad_row():
                rows.append(labelled(f"{path}, {row.location}", row.values, fields, answers))
        if not rows and not reading.skipped:
            raise DataError(
                f"{path} has no row where {where}. At least one row must match. Correct data.where, or name another "
                "file."
            )
        return rows

    def _labelled(
        self, location: str, values: Mapping[str, str], fields: list[str], answers: AnswerKind
    ) -> LabelledText:
        if self.list_separator is not None:
            values = dict(values) | {column: _joined(values[column], self.list_separator) for column in fields}
        for column in fields if answers.has_several else (*fields, self.label_column):
            require_text(location, column, values[column])
        answer = read_cell(location, self.label_column, values[self.label_column], answers.read)
        parts = [require_text(location, column, values[column]).strip() for column in self.group_columns]
        pair = values[fields[1]] if len(fields) > 1 else None
        return LabelledText(location, values[fields[0]], pair, answer, ",".join(parts) if parts else None)

    def _label_set(self, read: FileRecords[LabelledText], answers: AnswerKind) -> tuple[str, ...]:
        if self.labels is not None and answers.has_labels:
            return tuple(str(label) for label in self.labels)
        labels = read.collect_labels(lambda row: answers.labels(row.label), answers.outside)
        are_integers = all(label.removeprefix("-").isdecimal() for label in labels)
        return tuple(sorted(labels, key=lambda label: (int(label) if are_integers else 0, label)))


def _joined(cell: str, separator: str) -> str:
    """Joins the items of a JSON list; returns any other cell unchanged."""
    items = parse_list(cell)
    return cell if items is None else separator.join(str(item) for item in items)


def _check_several_answers(rows: list[LabelledText]) -> None:
    if len({row.label for row in rows}) < 2:
        raise DataError(
            f"{rows[0].location}: all training rows ({counted(len(rows), 'row')}) have the label {rows[0].label!r}. "
            "Training needs at least 2 labels. Correct data.label_column or data.where, or add rows."
        )


def _known(row: LabelledText, labels: Sequence[str], known: Collection[str], answers: AnswerKind) -> LabelledText:
    """Returns the row if all of its labels are known.

    Raises:
        DataError: A label is unknown.
    """
    for label in answers.labels(row.label):
        if label not in known:
            raise DataError(
                f"{row.location}: the label {label!r} is none of {', '.join(labels)}. Labels must be in the label set. "
                "Correct the row, or list all labels in data.labels."
            )
    return row
