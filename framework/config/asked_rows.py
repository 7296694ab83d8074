"""Reads the rows to predict, checks each for the task, and joins them with their predictions in input order."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from framework.config.command_schema import InputFormat, PredictConfig
from framework.data.examples.splits import SplitFiles
from framework.data.reading.files import Reading, check_regular, kind_of
from framework.data.reading.json_rows import row_values
from framework.data.reading.rows import Row, is_table, read_rows
from framework.data.reading.table_format import TableFile
from framework.data.reading.table_kind import json_kind
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.task import Task
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.tagged_rows import read_conll_words

_RENAMED = "input_"

_Reader = Callable[[Reading], Iterator[Row] | None]


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row of the input.

    Attributes:
        row: Row with one value per field of the task; None if it cannot be predicted.
        kept: Values of the columns that the output copies, by column.
        error: Reason why it cannot be predicted.
    """

    row: Row | None
    kept: Mapping[str, Any]
    error: str | None = None


@dataclass
class _AnsweredReading(Reading):
    """Records bad rows, so that each is answered at its index."""

    noted: list[AskedRow] = field(default_factory=list)

    def bad_row(self, error: DataError, num_rows: int = 1) -> None:
        """Raises the error, or records one bad row for each row that it affects."""
        super().bad_row(error, num_rows)
        self.noted += [AskedRow(None, {}, str(error))] * num_rows

    def in_order(self, rows: Iterator[Row]) -> Iterator[AskedRow]:
        """Yields the rows of a reader, and fills gaps in their numbers with the recorded bad rows."""
        number = 0
        for row in rows:
            # A reader may look ahead and record a row before its turn.
            yield from self._taken(row.number - number - 1)
            yield AskedRow(row, row.kept)
            number = row.number
        yield from self._taken(len(self.noted))

    def _taken(self, count: int) -> list[AskedRow]:
        taken, self.noted = self.noted[:count], self.noted[count:]
        return taken


def check_input(settings: PredictConfig) -> None:
    """Reads the first row of a table, so that an unreadable file is reported early.

    Raises:
        ConfigError: The path is empty.
        DataError: The file is missing, damaged, a pipe or a device, or lacks a column that the output copies.
    """
    if settings.input is None:
        return
    if not settings.input:
        raise ConfigError("`input` is empty. It must be the path of a file. Give one.")
    path = Path(settings.input)
    check_regular(path)
    form = settings.format
    # An object of JSON may hold rows in a form of the task, which is not known yet.
    is_rows = is_table(path) and kind_of(path) != ".json"
    if is_rows and (form is None or (form.kind != "conll" and form.columns is None)):
        reading = Reading(settings.on_bad_row)
        next(read_rows(path, (), reading, form, (), settings.keep_columns), None)
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Correct the path or its permissions.") from error


def choose_fields(given: Mapping[str, str], task: Task, layout: SplitFiles | None = None) -> list[dict[str, str]]:
    """Returns the possible ways to read a row, each a mapping of field to column, in the order of preference.

    Columns are those that are given, else those of training, else those with the names of the fields.

    Args:
        given: Columns that are not named as the field that they hold, by field.
        task: Task that reads the rows.
        layout: Reader of the training files; None: unknown.

    Raises:
        ConfigError: `columns` names a field that the task does not read.
    """
    known = task.field_choices
    for name in given:
        if not any(name in fields for fields in known):
            names = ", ".join(dict.fromkeys(each for fields in known for each in fields))
            raise ConfigError(f"`columns` names {name!r}, but this task reads {names}. Name one of these.")
    chosen = [fields for fields in known if given.keys() <= set(fields)]
    trained = {} if layout is None else layout.field_columns
    ways = [
        {name: columns.get(name, name) for name in fields}
        for columns in ({**trained, **given}, given)
        for fields in chosen
    ]
    return [way for index, way in enumerate(ways) if way not in ways[:index]]


def read_asked(settings: PredictConfig, task: Task, tokenizer: Tokenizer, layout: SplitFiles | None) -> list[AskedRow]:
    """Reads and checks the rows to predict.

    Args:
        settings: Settings of the command.
        task: The task.
        tokenizer: Tokenizer of the model.
        layout: Reader of the training files, whose formats and columns are tried first; None: unknown.

    Raises:
        ConfigError: `columns` names a field that the task does not read, or the task does not read `text` alone.
        DataError: The file cannot be used, a row is bad and `on_bad_row` is "error", or all rows are bad.
    """
    ways = choose_fields(settings.columns or {}, task, layout)
    if settings.input is None:
        texts = [settings.text] if isinstance(settings.text, str) else list(settings.text or ())
        asked, source = _given_texts(texts, ways), "text"
    else:
        asked, source = _read_file(settings, task, ways, layout), settings.input
    return _checked_rows(asked, task, tokenizer, source, settings.on_bad_row)


def read_given(
    inputs: Sequence[str | Mapping[str, Any]],
    task: Task,
    tokenizer: Tokenizer,
    on_bad_row: Literal["error", "skip"],
    layout: SplitFiles | None,
) -> list[AskedRow]:
    """Checks rows that a Python program gives: texts, as with `text`, or mappings, as the objects of a JSONL file.

    Args:
        inputs: Texts or mappings.
        task: Task that reads the rows.
        tokenizer: Tokenizer of the model.
        on_bad_row: "error" raises, "skip" records the error of the row.
        layout: Reader of the training files, whose columns are tried first; None: unknown.

    Raises:
        ConfigError: Texts are given, but the task does not read `text` alone.
        DataError: A row is bad and `on_bad_row` is "error", or all rows are bad.
    """
    ways = choose_fields({}, task, layout)
    if all(isinstance(each, str) for each in inputs):
        asked = _given_texts([str(each) for each in inputs], ways)
    else:
        keys = next(iter(inputs), ())
        way = next((way for way in ways if set(way.values()) <= set(keys)), ways[0])
        asked = _given_mappings(inputs, way, task, _AnsweredReading(on_bad_row))
    return _checked_rows(asked, task, tokenizer, "input", on_bad_row)


def _given_mappings(
    inputs: Sequence[Any], way: Mapping[str, str], task: Task, reading: _AnsweredReading
) -> list[AskedRow]:
    columns = list(way.values())
    lists = [way[name] for name in task.list_fields if name in way]
    table = TableFile(Path("input"), columns, list_columns=lists, as_is=columns)
    for number, each in enumerate(inputs, start=1):
        try:
            texts, kept = row_values(table, None, f"row {number}", dict(each) if isinstance(each, Mapping) else each)
        except DataError as error:
            reading.bad_row(error)
        else:
            values = {name: texts[column] for name, column in way.items()}
            reading.noted.append(AskedRow(Row(number, None, values), kept))
    return reading.noted


def _checked_rows(
    asked: Sequence[AskedRow], task: Task, tokenizer: Tokenizer, source: str, on_bad_row: Literal["error", "skip"]
) -> list[AskedRow]:
    reading = Reading(on_bad_row)
    checked = [_checked(each, task, tokenizer, source, reading) for each in asked]
    if all(each.row is None for each in checked):
        example = f"The first one: {checked[0].error}" if checked else "Give a file with rows."
        raise DataError(f"{source} has no row that can be predicted. At least one must be valid. {example}")
    return checked


def _given_texts(texts: Sequence[str], ways: Sequence[Mapping[str, str]]) -> list[AskedRow]:
    if not any(list(way) == ["text"] for way in ways):
        fields = " and ".join(ways[0])
        raise ConfigError(
            f"`text` is given, but this task reads {fields or 'no texts'}. Give rows with these columns: a file as "
            "`input`, or mappings from Python."
        )
    if not texts:
        raise DataError("`text` is an empty list. Give at least one text.")
    return [AskedRow(Row(number, None, {"text": text}), {"text": text}) for number, text in enumerate(texts, start=1)]


def _read_file(
    settings: PredictConfig, task: Task, ways: Sequence[Mapping[str, str]], layout: SplitFiles | None
) -> list[AskedRow]:
    path, form = Path(settings.input or ""), settings.format or InputFormat()
    if _is_conll(path, form, task):
        if not any("tokens" in way for way in ways):
            raise ConfigError(f"{path} has CoNLL columns, but this task tags no words. Give a table of its rows.")
        if settings.keep_columns:
            raise ConfigError(
                f"keep_columns is {list(settings.keep_columns)}, but CoNLL columns have no names. Leave it empty."
            )
        columns = settings.conll.over(layout.conll if isinstance(layout, TaggedData) else None)
        reading = _AnsweredReading(settings.on_bad_row)
        return list(reading.in_order(read_conll_words(path, columns, reading)))
    readers: list[_Reader] = [partial(_table_rows, settings, path, task, way) for way in ways]
    if layout is not None and path.exists():
        table = TableFile(path, (), form, as_is=settings.keep_columns)
        readers.insert(0, partial(layout.rows_to_predict, table, settings.columns or {}))
    attempts = (each for reader in readers if (each := _attempted(reader, settings.on_bad_row)) is not None)
    first = next(attempts)
    # Prefer the first attempt that reads a row, else the first one, whose error names the usual columns.
    asked, fault = next((each for each in chain([first], attempts) if any(row.row for row in each[0])), first)
    if fault is not None:
        raise fault
    return asked


def _is_conll(path: Path, form: InputFormat, task: Task) -> bool:
    if form.kind is not None or task.text_format != "conll" or is_table(path):
        return form.kind == "conll"
    return json_kind(path, form) is None


def _table_rows(
    settings: PredictConfig, path: Path, task: Task, way: Mapping[str, str], reading: Reading
) -> Iterator[Row]:
    """Streams the rows of a table with their values by field."""
    lists = [way[name] for name in task.list_fields if name in way]
    as_is = list(dict.fromkeys([*way.values(), *settings.keep_columns]))
    for row in read_rows(path, list(way.values()), reading, settings.format, lists, as_is):
        yield replace(row, values={name: row.values[column] for name, column in way.items()})


def _attempted(reader: _Reader, on_bad_row: Literal["error", "skip"]) -> tuple[list[AskedRow], DataError | None] | None:
    """Returns the rows of a file, and the error that ended reading; None if the reader is not for this file."""
    reading = _AnsweredReading(on_bad_row)
    asked: list[AskedRow] = []
    try:
        rows = reader(reading)
        if rows is None:
            return None
        for each in reading.in_order(rows):
            asked.append(each)
    except DataError as error:
        return asked, error
    return asked, None


def _checked(asked: AskedRow, task: Task, tokenizer: Tokenizer, source: str, reading: Reading) -> AskedRow:
    if asked.row is None:
        return asked
    try:
        task.check_row(asked.row, tokenizer)
    except DataError as error:
        named = DataError(f"{source}, {error}")
        reading.bad_row(named)
        return AskedRow(None, asked.kept, str(named))
    return asked


def join_rows(asked: Sequence[AskedRow], predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Joins rows and predictions: input columns first, then predicted keys; nulls and `error` for bad rows.

    An input column that has the name of a predicted key becomes `input_NAME`, unless it is a field of the task that
    the predictions repeat.

    Args:
        asked: All rows.
        predictions: Predictions for the rows that can be predicted, in row order.
    """
    found = iter(predictions)
    keys = list(dict.fromkeys(name for each in predictions for name in each))
    fields = {name for each in asked if each.row is not None for name in each.row.values}
    columns = list(dict.fromkeys(name for each in asked for name in each.kept))
    names = _free_names(columns, keys, fields)
    joined = []
    for each in asked:
        row = {name: each.kept.get(column) for column, name in names.items()}
        if each.row is not None:
            joined.append(row | dict(next(found)))
        else:
            joined.append(row | {key: row.get(key) for key in keys} | {"error": each.error})
    return joined


def _free_names(columns: Sequence[str], keys: Sequence[str], fields: Collection[str]) -> dict[str, str]:
    """Returns the name of each column in the output."""
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while (name in keys and name not in fields) or (name != column and name in columns):
            name = _RENAMED + name
        names[column] = name
    return names
