"""Questions with some answers to choose from, one of which is right; checked and split (`splits`)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.splits import ReadSplits, SplitFiles, same_text
from framework.data.reading.files import Reading
from framework.data.reading.json_rows import has_text
from framework.data.reading.rows import Row, read_rows
from framework.data.reading.table_format import TableFile, TableFormat
from framework.errors import ConfigError, DataError
from framework.files import parse_json


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages.
        question: As in the file.
        context: What the question is on; None where rows have none.
        choices: At least two, all different.
        right: Place of the right one among them; None where it is to be predicted.
    """

    location: str
    question: str
    context: str | None
    choices: tuple[str, ...]
    right: int | None

    @property
    def identity(self) -> tuple[str, ...]:
        """Context, question, and the choices in whatever order."""
        return same_text(self.context or ""), same_text(self.question), *sorted(map(same_text, self.choices))

    @property
    def answer(self) -> str | None:
        """The right choice."""
        return None if self.right is None else same_text(self.choices[self.right])


@dataclass(frozen=True)
class ChoiceData(SplitFiles):
    """A question, its choices and which of them is right a row, of files that `framework.data.reading.rows` reads.

    Attributes:
        question_column: Column, in JSONL key, of the question.
        context_column: Column of the text that the question is on; None: there is none.
        choice_columns: One column holds the choices of a row as a list (in CSV: a JSON list); several hold one choice
            each, and the last ones may be empty where a row has fewer.
        label_column: Column that tells the right choice.
        label_kind: "index", counted from 0, or "text", that of the choice.
        format: Format of the files; None: the defaults of TableFormat.
        on_bad_row: What is done about a row that is broken, lacks a text, has fewer than two choices or equal ones, or
            whose label is none of them: "error", or "skip", which counts it.
    """

    question_column: str = "question"
    context_column: str | None = None
    choice_columns: list[str] = field(default_factory=lambda: ["choices"])
    label_column: str = "label"
    label_kind: Literal["index", "text"] = "index"
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.choice_columns) == len(set(self.choice_columns)):
            raise ConfigError(
                f"data.choice_columns is {self.choice_columns}, it must name at least one column, and none twice."
            )

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the columns of question, context and choices."""
        return {
            "question": self.question_column,
            **({} if self.context_column is None else {"context": self.context_column}),
            **({"choices": self.choice_columns[0]} if len(self.choice_columns) == 1 else {}),
        }

    def rows_to_predict(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row] | None:
        """Streams the rows of a table with several columns of choices, as `choices`."""
        if len(self.choice_columns) == 1 or "choices" in columns:
            return None
        return self._joined(table, {**self.field_columns, **columns}, reading)

    def _joined(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row]:
        wanted = [*columns.values(), *self.choice_columns]
        as_is = list(dict.fromkeys([*wanted, *table.as_is]))
        for row in read_rows(table.path, wanted, reading, table.format, as_is=as_is):
            choices = _filled_cells([row.values[column] for column in self.choice_columns])
            values = {name: row.values[column] for name, column in columns.items()}
            yield replace(row, values=values | {"choices": json.dumps(choices, ensure_ascii=False)})

    def load(self) -> ReadSplits[ChoiceExample]:
        """Reads, checks and splits the rows.

        Raises:
            DataError: A file is missing, empty or damaged; a row is bad and not to be skipped; no row is left for a
                split.
        """
        return self.split(self.read_files(self._read, self.on_bad_row))

    def _read(self, path: Path, reading: Reading) -> Iterator[ChoiceExample]:
        texts = [self.question_column, *([] if self.context_column is None else [self.context_column])]
        columns = [*texts, *self.choice_columns, self.label_column]
        lists = self.choice_columns if len(self.choice_columns) == 1 else ()
        for row in read_rows(path, columns, reading, self.format, lists):
            location = f"{path}, {row.location}"
            try:
                example = self._example(location, row)
            except DataError as error:
                reading.bad_row(error)
            else:
                yield example

    def _example(self, location: str, row: Row) -> ChoiceExample:
        cells = [row.values[column] for column in self.choice_columns]
        choices = listed_choices(location, cells[0]) if len(cells) == 1 else _choices_of_columns(location, cells)
        question = filled(location, self.question_column, row.values[self.question_column])
        context = None
        if self.context_column is not None:
            context = filled(location, self.context_column, row.values[self.context_column])
        return ChoiceExample(location, question, context, choices, self._right(location, row, choices))

    def _right(self, location: str, row: Row, choices: Sequence[str]) -> int:
        label = row.values[self.label_column].strip()
        known = [same_text(choice) for choice in choices]
        if self.label_kind == "index":
            known = [str(index) for index in range(len(choices))]
        if same_text(label) not in known:
            raise DataError(
                f"{location}: the label is {label!r}, it must be one of {', '.join(known)}; correct or remove the "
                "row, or set `label_kind`."
            )
        return known.index(same_text(label))


def filled(location: str, name: str, text: str) -> str:
    """The text, if it is not empty.

    Raises:
        DataError: It is.
    """
    if not text.strip():
        raise DataError(f"{location}: {name!r} is empty, each row needs one; fill in or remove the row.")
    return text


def listed_choices(location: str, cell: str) -> tuple[str, ...]:
    """The choices of a JSON list.

    Raises:
        DataError: It is none, or its items are not at least two different texts.
    """
    try:
        found = parse_json(cell)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(map(has_text, found)):
        raise DataError(f"{location}: the choices are {cell[:60]!r}, they must be a list of texts; correct the row.")
    return _checked(location, [str(choice) for choice in found])


def _choices_of_columns(location: str, cells: list[str]) -> tuple[str, ...]:
    return _checked(location, _filled_cells(cells))


def _filled_cells(cells: list[str]) -> list[str]:
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _checked(location: str, choices: Sequence[str]) -> tuple[str, ...]:
    different = {same_text(choice) for choice in choices}
    if len(choices) < 2 or len(different) < len(choices) or "" in different:
        raise DataError(
            f"{location}: the choices are {', '.join(map(repr, choices)) or 'empty'}, they must be at least two texts, "
            "none empty and none twice; correct or remove the row."
        )
    return tuple(choices)
