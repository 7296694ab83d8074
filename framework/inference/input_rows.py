"""Reads the rows to predict, and checks each for the task."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig

from framework.config.command import resolve_config
from framework.config.command_schema import InputFormat, PredictConfig
from framework.config.nodes import check_arguments
from framework.config.outputs import check_output_differs
from framework.data.examples.answers import parse_list
from framework.data.examples.splits import SplitFiles
from framework.data.reading.files import Reading, check_regular, kind_of
from framework.data.reading.json_rows import row_values
from framework.data.reading.rows import Row, is_table, read_rows
from framework.data.reading.table_format import TableFile
from framework.data.reading.table_kind import json_kind
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.inference.prediction_files import check_suffix
from framework.tasks.task import Task
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.tagged_rows import read_conll_words

_Settings = TypeVar("_Settings", bound=PredictConfig)

_Reader = Callable[[Reading], Iterator[Row] | None]


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of the input.

    Attributes:
        row: Row with one value per field of the task; None if the row cannot be predicted.
        kept: Values of the columns that the output copies, by column.
        error: Reason why the row cannot be predicted; None if it can.
    """

    row: Row | None
    kept: Mapping[str, Any]
    error: str | None = None


@dataclass
class _AnsweredReading(Reading):
    """Reading that records bad rows, so that the output reports each of them at its index."""

    collected: list[InputRow] = field(default_factory=list)

    def bad_row(self, error: DataError, num_rows: int = 1) -> None:
        """Raises the error, or records one bad row for each row that it affects."""
        super().bad_row(error, num_rows)
        self.collected += [
            InputRow(None, {}, str(error) if self.conceal is None else self.conceal(str(error)))
        ] * num_rows

    def in_order(self, rows: Iterator[Row]) -> Iterator[InputRow]:
        """Yields the rows of a reader and fills gaps in their numbers with the recorded bad rows."""
        number = 0
        for row in rows:
            # A reader may look ahead and record a bad row before it yields the rows in front of it.
            yield from self._take(row.number - number - 1)
            yield InputRow(row, row.kept)
            number = row.number
        yield from self._take(len(self.collected))

    def _take(self, count: int) -> list[InputRow]:
        taken, self.collected = self.collected[:count], self.collected[count:]
        return taken


def read_settings(composed: DictConfig, schema: type[_Settings]) -> _Settings:
    """Returns the settings of a command that predicts rows, and checks its paths before a model is read.

    Args:
        composed: Composed config.
        schema: Dataclass of the command's settings.

    Raises:
        ConfigError: A value is invalid, or the output is the input or has a suffix that is not supported.
        DataError: The input cannot be read.
    """
    settings = schema(**check_arguments("", resolve_config(composed, schema), schema))
    check_suffix(settings.output)
    check_output_differs(settings.output, [settings.input])
    check_input(settings)
    return settings


def check_input(settings: PredictConfig) -> None:
    """Reads the first row of a table, so that an unreadable file is reported early.

    Raises:
        ConfigError: The path is empty.
        DataError: The file is missing, damaged, a pipe or a device, or lacks a column that the output copies.
    """
    if settings.input is None:
        return
    if not settings.input:
        raise ConfigError("`input` is empty. It must be the path of a file. Set it, for example input=FILE.")
    path = Path(settings.input)
    check_regular(path)
    form = settings.format
    # A JSON object may hold rows in a format of the task, which is not known yet.
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


def choose_fields(
    given: Mapping[str, str], known: Sequence[Sequence[str]], layout: SplitFiles | None = None
) -> list[dict[str, str]]:
    """Returns the possible column choices for a row, each a mapping of field to column, in the order of preference.

    A field is read from the given column, else from the column of training, else from the column with its own name.

    Args:
        given: Columns whose names differ from the fields that they hold, by field.
        known: Alternative sets of fields that the task reads.
        layout: Reader of the training files; None: unknown.

    Raises:
        ConfigError: `columns` names a field that the task does not read.
    """
    for name in given:
        if not any(name in fields for fields in known):
            names = ", ".join(dict.fromkeys(each for fields in known for each in fields))
            raise ConfigError(f"`columns` contains the field {name!r}, but this task reads {names}. Use one of these.")
    chosen = [fields for fields in known if given.keys() <= set(fields)]
    trained = {} if layout is None else layout.field_columns
    choices = [
        {name: columns.get(name, name) for name in fields}
        for columns in ({**trained, **given}, given)
        for fields in chosen
    ]
    return [choice for index, choice in enumerate(choices) if choice not in choices[:index]]


def read_input_rows(
    settings: PredictConfig,
    task: Task,
    tokenizer: Tokenizer,
    layout: SplitFiles | None,
    fields: Sequence[Sequence[str]] | None = None,
) -> list[InputRow]:
    """Reads and checks the rows to predict (`stream_input_rows`).

    Raises:
        ConfigError: See `stream_input_rows`.
        DataError: See `stream_input_rows`; or all rows are bad.
    """
    rows = list(stream_input_rows(settings, task, tokenizer, layout, fields))
    return _with_a_row(rows, "text" if settings.input is None else settings.input)


def stream_input_rows(
    settings: PredictConfig,
    task: Task,
    tokenizer: Tokenizer,
    layout: SplitFiles | None,
    fields: Sequence[Sequence[str]] | None = None,
) -> Iterator[InputRow]:
    """Reads and checks the rows to predict, one after the other.

    Args:
        settings: Settings of the command.
        task: The task.
        tokenizer: Tokenizer of the model.
        layout: Reader of the training files, whose formats and columns are tried first; None: unknown.
        fields: Alternative sets of fields that are read from a row; None: those of predictions.

    Raises:
        ConfigError: `columns` names a field that the task does not read; or `text` is given, but the task reads other
            fields.
        DataError: The file cannot be used, or a row is bad and `on_bad_row` is "error".
    """
    layout = None if layout is None else layout.with_masks(tokenizer)
    choices = choose_fields(settings.columns or {}, fields or task.field_choices, layout)
    if settings.input is None:
        texts = [settings.text] if isinstance(settings.text, str) else list(settings.text or ())
        rows, source = iter(_rows_of_texts(texts, choices)), "text"
    else:
        rows, source = _read_file(settings, task, choices, layout), settings.input
    return _checked_rows(rows, task, tokenizer, source, settings.on_bad_row, layout)


def read_python_rows(
    inputs: Sequence[str | Mapping[str, Any]],
    task: Task,
    tokenizer: Tokenizer,
    on_bad_row: Literal["error", "skip"],
    layout: SplitFiles | None,
) -> list[InputRow]:
    """Checks rows that a Python program passes: texts, as in `text`, or mappings like the objects of a JSONL file.

    Args:
        inputs: Texts or mappings.
        task: Task that reads the rows.
        tokenizer: Tokenizer of the model.
        on_bad_row: "error" raises, "skip" records the error of the row.
        layout: Reader of the training files, whose columns are tried first; None: unknown.

    Raises:
        ConfigError: Texts are given, but the task reads other fields than `text`.
        DataError: A row is bad and `on_bad_row` is "error", or all rows are bad.
    """
    layout = None if layout is None else layout.with_masks(tokenizer)
    choices = choose_fields({}, task.field_choices, layout)
    if all(isinstance(each, str) for each in inputs):
        rows = _rows_of_texts([str(each) for each in inputs], choices)
    else:
        keys = next(iter(inputs), ())
        choice = next((choice for choice in choices if set(choice.values()) <= set(keys)), choices[0])
        rows = _rows_of_mappings(inputs, choice, task, _AnsweredReading(on_bad_row, conceal=_conceal(layout)))
    return _with_a_row(list(_checked_rows(rows, task, tokenizer, "input", on_bad_row, layout)), "input")


def _conceal(layout: SplitFiles | None) -> Callable[[str], str] | None:
    """Returns the function that removes personal data from messages; `layout` has its masks, if it masks."""
    return None if layout is None or layout.masking is None else layout.masking.message


def _rows_of_mappings(
    inputs: Sequence[Any], choice: Mapping[str, str], task: Task, reading: _AnsweredReading
) -> list[InputRow]:
    columns = list(choice.values())
    lists = [choice[name] for name in task.list_fields if name in choice]
    table = TableFile(Path("input"), columns, list_columns=lists, as_is=columns)
    for number, each in enumerate(inputs, start=1):
        with reading.handling_bad_row():
            texts, kept = row_values(table, None, f"row {number}", dict(each) if isinstance(each, Mapping) else each)
            values = {name: texts[column] for name, column in choice.items()}
            reading.collected.append(InputRow(Row(number, None, values), kept))
    return reading.collected


def _masked(each: InputRow, task: Task, data: SplitFiles) -> InputRow:
    """Masks personal data as in training, in the row and in all values that the output copies."""
    masking = data.masking
    assert masking is not None
    kept = {name: masking.value(value) for name, value in each.kept.items()}
    if each.row is None:
        return replace(each, kept=kept)
    values = data.masked_values(each.row.values, task.list_fields)
    for name, value in each.row.values.items():
        # The output repeats the words and choices that were read.
        items = parse_list(value) if name in task.list_fields else None
        if items is not None:
            kept |= {column: parse_list(values[name]) for column, cell in each.kept.items() if cell == items}
        kept |= {column: values[name] for column, cell in each.kept.items() if cell == value}
    return replace(each, row=replace(each.row, values=values), kept=kept)


def _checked_rows(
    rows: Iterable[InputRow],
    task: Task,
    tokenizer: Tokenizer,
    source: str,
    on_bad_row: Literal["error", "skip"],
    layout: SplitFiles | None,
) -> Iterator[InputRow]:
    """Masks and checks rows; `layout` has its masks."""
    reading = Reading(on_bad_row, conceal=_conceal(layout))
    for each in rows:
        row = each if layout is None or layout.masking is None else _masked(each, task, layout)
        yield _checked(row, task, tokenizer, source, reading)


def _with_a_row(checked: list[InputRow], source: str) -> list[InputRow]:
    """Checks that a row can be predicted."""
    if all(each.row is None for each in checked):
        raise no_row_error(source, checked[0].error if checked else None)
    return checked


def no_row_error(source: str, first_error: str | None) -> DataError:
    """Returns the error for an input in which no row can be predicted."""
    example = "Give a file with rows." if first_error is None else f"The first error is: {first_error}"
    return DataError(f"{source} has no row that can be predicted. At least one row must be valid. {example}")


def _rows_of_texts(texts: Sequence[str], choices: Sequence[Mapping[str, str]]) -> list[InputRow]:
    if not any(list(choice) == ["text"] for choice in choices):
        fields = " and ".join(choices[0])
        raise ConfigError(
            f"`text` is given, but this task reads {fields or 'no texts'}. Give rows with these columns: on the "
            "command line as the file `input`, in Python as mappings."
        )
    if not texts:
        raise DataError("`text` is an empty list. At least one text is required. Add a text.")
    return [InputRow(Row(number, None, {"text": text}), {"text": text}) for number, text in enumerate(texts, start=1)]


def _read_file(
    settings: PredictConfig, task: Task, choices: Sequence[Mapping[str, str]], layout: SplitFiles | None
) -> Iterator[InputRow]:
    path, form = Path(settings.input or ""), settings.format or InputFormat()
    if _is_conll(path, form, task):
        if not any("tokens" in choice for choice in choices):
            raise ConfigError(
                f"{path} has CoNLL columns, but this task does not tag words. Give its rows as a table, for example "
                "CSV or JSONL."
            )
        if settings.keep_columns:
            raise ConfigError(
                f"`keep_columns` is {list(settings.keep_columns)}, but CoNLL columns have no names. Remove "
                "`keep_columns`."
            )
        columns = settings.conll.over(layout.conll if isinstance(layout, TaggedData) else None)
        reading = _AnsweredReading(settings.on_bad_row, conceal=_conceal(layout))
        return reading.in_order(read_conll_words(path, columns, reading))
    readers: list[_Reader] = [partial(_table_rows, settings, path, task, choice) for choice in choices]
    if layout is not None and path.exists():
        table = TableFile(path, (), form, as_is=settings.keep_columns)
        readers.insert(0, partial(layout.rows_to_predict, table, settings.columns or {}))
    first: _Reader | None = None
    for reader in readers:
        is_supported, has_row = _tried(reader, settings.on_bad_row, layout)
        # Prefer the first reader that reads a row, else the first reader, whose error names the usual columns.
        if has_row:
            first = reader
            break
        first = reader if first is None and is_supported else first
    assert first is not None
    reading = _AnsweredReading(settings.on_bad_row, conceal=_conceal(layout))
    chosen = first(reading)
    assert chosen is not None
    return reading.in_order(chosen)


def _is_conll(path: Path, form: InputFormat, task: Task) -> bool:
    if form.kind is not None or task.text_format != "conll" or is_table(path):
        return form.kind == "conll"
    return json_kind(path, form) is None


def _table_rows(
    settings: PredictConfig, path: Path, task: Task, choice: Mapping[str, str], reading: Reading
) -> Iterator[Row]:
    """Streams the rows of a table with their values by field."""
    lists = [choice[name] for name in task.list_fields if name in choice]
    as_is = list(dict.fromkeys([*choice.values(), *settings.keep_columns]))
    for row in read_rows(path, list(choice.values()), reading, settings.format, lists, as_is):
        yield replace(row, values={name: row.values[column] for name, column in choice.items()})


def _tried(reader: _Reader, on_bad_row: Literal["error", "skip"], layout: SplitFiles | None) -> tuple[bool, bool]:
    """Returns whether the reader supports the file, and whether it reads a row of it."""
    reading = _AnsweredReading(on_bad_row, conceal=_conceal(layout))
    try:
        rows = reader(reading)
        return rows is not None, rows is not None and any(each.row for each in reading.in_order(rows))
    except DataError:
        return True, False


def _checked(input_row: InputRow, task: Task, tokenizer: Tokenizer, source: str, reading: Reading) -> InputRow:
    if input_row.row is None:
        return input_row
    try:
        task.check_row(input_row.row, tokenizer)
    except DataError as error:
        named = f"{source}, {error}" if reading.conceal is None else reading.conceal(f"{source}, {error}")
        reading.bad_row(DataError(named))
        return InputRow(None, input_row.kept, named)
    return input_row
