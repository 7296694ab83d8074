"""Reads, checks and splits questions with several choices, one of which is right."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import parse_list, require_text
from framework.data.examples.splits import ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.json_rows import has_text
from framework.data.reading.rows import Row, read_rows
from framework.data.reading.table_format import TableFile, TableFormat
from framework.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages.
        question: Question as in the file.
        context: Text that the question is about; None if rows have none.
        choices: At least two different choices.
        right: Index of the right choice; None if it is to be predicted.
    """

    location: str
    question: str
    context: str | None
    choices: tuple[str, ...]
    right: int | None

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns context, question and choices, independent of the order of the choices."""
        return same_text(self.context or ""), same_text(self.question), *sorted(map(same_text, self.choices))

    @property
    def answer(self) -> str | None:
        """Returns the right choice; None if it is unknown."""
        return None if self.right is None else same_text(self.choices[self.right])

    def masked(self, masking: TextMasking) -> "ChoiceExample":
        """Returns the row with masked texts.

        Raises:
            DataError: Two choices differ only in what is masked.
        """
        context = None if self.context is None else masking.text(self.context)
        choices = _checked(self.location, [masking.text(choice) for choice in self.choices])
        return replace(self, question=masking.text(self.question), context=context, choices=choices)


@dataclass(frozen=True)
class ChoiceData(SplitFiles):
    """Data whose rows have a question, its choices and the right choice; `framework.data.reading.rows` reads the files.

    Attributes:
        question_column: Column of the question, or key in JSONL.
        context_column: Column of the text that the question is about; None: there is no context.
        choice_columns: One column contains the choices of a row as a list (in CSV: a JSON list). Several columns
            contain one choice each; the last ones are empty in rows with fewer choices.
        label_column: Column of the right choice.
        label_kind: Form of the label: "index" of the choice, counted from 0, or its "text".
        format: Format of the files; None: the defaults of TableFormat.
        on_bad_row: Handling of a row that is broken, lacks a text, has fewer than two choices or equal ones, or whose
            label matches no choice: "error", or "skip", which counts the row.
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
                f"data.choice_columns is {self.choice_columns}. It must name at least one column, and none twice. "
                "Correct it."
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
        """Streams the rows of a table with several columns of choices, joined in the field `choices`."""
        if len(self.choice_columns) == 1 or "choices" in columns:
            return None
        return self._joined(table, {**self.field_columns, **columns}, reading)

    def _joined(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row]:
        requested = [*columns.values(), *self.choice_columns]
        as_is = list(dict.fromkeys([*requested, *table.as_is]))
        for row in read_rows(table.path, requested, reading, table.format, as_is=as_is):
            choices = _drop_empty_end([row.values[column] for column in self.choice_columns])
            values = {name: row.values[column] for name, column in columns.items()}
            yield replace(row, values=values | {"choices": json.dumps(choices, ensure_ascii=False)})

    def load(self) -> ReadSplits[ChoiceExample]:
        """Reads, checks and splits the rows.

        Raises:
            DataError: A file is missing, empty or damaged; a bad row may not be skipped; a split has no rows left.
        """
        return self.split(self.read_files(self._read, self.on_bad_row))

    def _read(self, path: Path, reading: Reading) -> Iterator[ChoiceExample]:
        texts = [self.question_column, *([] if self.context_column is None else [self.context_column])]
        columns = [*texts, *self.choice_columns, self.label_column]
        lists = self.choice_columns if len(self.choice_columns) == 1 else ()
        for row in read_rows(path, columns, reading, self.format, lists):
            with reading.handling_bad_row():
                yield self._example(f"{path}, {row.location}", row)

    def _example(self, location: str, row: Row) -> ChoiceExample:
        cells = [row.values[column] for column in self.choice_columns]
        choices = parse_choices(location, cells[0]) if len(cells) == 1 else _checked(location, _drop_empty_end(cells))
        question = require_text(location, self.question_column, row.values[self.question_column])
        context = None
        if self.context_column is not None:
            context = require_text(location, self.context_column, row.values[self.context_column])
        return ChoiceExample(location, question, context, choices, self._right(location, row, choices))

    def _right(self, location: str, row: Row, choices: Sequence[str]) -> int:
        label = row.values[self.label_column].strip()
        known = [same_text(choice) for choice in choices]
        if self.label_kind == "index":
            known = [str(index) for index in range(len(choices))]
        if same_text(label) not in known:
            raise DataError(
                f"{location}: the label is {label!r}. It must be one of {', '.join(known)}. Correct or remove the row, "
                "or set `label_kind`."
            )
        return known.index(same_text(label))


def parse_choices(location: str, cell: str) -> tuple[str, ...]:
    """Parses a JSON list of choices.

    Raises:
        DataError: The cell is not a JSON list, or its items are not at least two different texts.
    """
    parsed = parse_list(cell)
    if parsed is None or not all(map(has_text, parsed)):
        raise DataError(f"{location}: the choices are {cell[:60]!r}. They must be a list of texts. Correct the row.")
    return _checked(location, [str(choice) for choice in parsed])


def _drop_empty_end(cells: list[str]) -> list[str]:
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _checked(location: str, choices: Sequence[str]) -> tuple[str, ...]:
    different = {same_text(choice) for choice in choices}
    if len(choices) < 2 or len(different) < len(choices) or "" in different:
        raise DataError(
            f"{location}: the choices are {', '.join(map(repr, choices)) or 'empty'}. They must be at least two "
            "different texts, none empty. Correct or remove the row."
        )
    return tuple(choices)
