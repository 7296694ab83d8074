"""Reads rows of JSON: one per line, or all in one JSON value."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.header import has_header
from framework.data.reading.table_format import Row, TableFile, check_columns
from framework.errors import DataError
from framework.files import parse_json

ALL_LISTS = ("*",)
"""Value of `TableFile.parts` that selects the lists of all keys of an object."""

_SAMPLE = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A row of a JSON file before validation.

    Attributes:
        number: Number of the row from 1; skipped rows count.
        line: Line number; None if the file is one JSON value.
        value: Parsed value of any type.
        key: Key of the list that contains the row; None if the file is not an object.
    """

    number: int
    line: int | None
    value: Any
    key: str | None = None

    @property
    def location(self) -> str:
        """Line or row, for messages."""
        return f"row {self.number}" if self.line is None else f"line {self.line}"


def read_json(table: TableFile, reading: Reading) -> Iterator[Row]:
    """Yields the rows of JSON: objects, or lists of values with the names in `format.columns`.

    Raises:
        DataError: `json_values` fails, the first list looks like a header, or a row is broken and `reading` does not
            skip such rows.
    """
    rows = json_values(table, reading)
    names = table.format.columns
    first = list(islice(rows, 1))
    if first and isinstance(first[0].value, list):
        first += islice(rows, _SAMPLE - 1)
    lists = [[str(cell) for cell in row.value] for row in first if isinstance(row.value, list)]
    may_begin_with_names = bool(first) and isinstance(first[0].value, list) and (names or table.format.header)
    if may_begin_with_names and has_header(f"{table.path}, {first[0].location}", table.format, table.columns, lists):
        names = lists[0]
        del first[0]
    for row in chain(first, rows):
        with reading.handling_bad_row():
            values, kept = row_values(table, names, row.location, row.value)
            yield Row(row.number, row.line, values, kept=kept)


def json_values(table: TableFile, reading: Reading) -> Iterator[JsonValue]:
    """Yields the values of a file: one per line (JSONL), or the items of its list or of lists in its object.

    Row numbers continue across lists.

    Raises:
        DataError: The file cannot be read or has another structure, or a line is broken and `reading` does not skip it.
    """
    if table.kind == "json":
        content = b"".join(raw for _, raw in raw_lines(table.path, reading))
        text = decode_line(table.path, 1, content, table.format.codec)
        parsed = _parsed(
            str(table.path), text, "The file must be one JSON value, or have one per line. Correct or convert it."
        )
        for number, (key, value) in enumerate(_listed_rows(table, parsed), start=1):
            yield JsonValue(number, None, value, key)
        return
    if table.parts and table.parts != ALL_LISTS:
        raise DataError(
            f"{table.path} has one JSON value per line, so it has no keys {'+'.join(table.parts)}. Only a JSON object "
            "has keys. Give the file without them."
        )
    number = 0
    for line, raw in raw_lines(table.path, reading):
        if not raw.strip():
            continue
        number += 1
        with reading.handling_bad_row():
            text = decode_line(table.path, line, raw, table.format.codec)
            value = _parsed(
                f"{table.path}, line {line}", text, "Each line must be one JSON object. Correct or remove the line."
            )
            yield JsonValue(number, line, value)


def json_objects(table: TableFile, reading: Reading, convert: Callable[[str, JsonValue], T]) -> Iterator[T]:
    """Yields the results of `convert` for the rows of a file, each an object. A row that it rejects is a bad row.

    Args:
        table: File to read; each object must have the keys in `as_is`.
        reading: Handling of bad rows.
        convert: Function of the location of a row, for messages, and the row; raises DataError for a bad row.

    Raises:
        DataError: `json_values` fails, or a row is bad and `reading` does not skip it.
    """
    for row in json_values(table, reading):
        location = f"{table.path}, row {row.number}" + ("" if row.line is None else f" (line {row.line})")
        with reading.handling_bad_row():
            if not isinstance(row.value, dict):
                raise DataError(
                    f"{location}: {type(row.value).__name__}, not an object. Each row must be one JSON object. Correct "
                    "it."
                )
            units = [] if reading.unit_column is None else [reading.unit_column]
            check_columns(table.path, row.location, [*table.as_is, *units], list(row.value))
            reading.keep_unit(location, row.value)
            yield convert(location, row)


def _listed_rows(table: TableFile, parsed: Any) -> list[tuple[str | None, Any]]:
    """Returns each row with the key of its list."""
    if isinstance(parsed, list) and table.parts in ((), ALL_LISTS):
        return [(None, row) for row in parsed]
    if isinstance(parsed, dict) and not table.parts and not any(isinstance(value, list) for value in parsed.values()):
        return [(None, parsed)]  # one row, as in JSONL
    keys = list(parsed) if isinstance(parsed, dict) else []
    parts = keys if table.parts == ALL_LISTS else table.parts
    if isinstance(parsed, dict) and not parts:
        raise DataError(
            f"{table.path} is an object, not a list of rows. Its lists are selected by their keys. Add the keys after "
            f"the file: {table.path}:{'+'.join(keys[:2])}."
        )
    for part in parts:
        if part not in keys:
            raise DataError(f"{table.path}: no key {part!r} among {keys}. Name one of these after the file.")
    if not parts or not all(isinstance(parsed[part], list) for part in parts):
        raise DataError(f"{table.path}: rows must be in a list. Name a key whose value is a list.")
    return [(part, row) for part in parts for row in parsed[part]]


def _parsed(location: str, text: str, rule_and_remedy: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:  # also raised for a number of thousands of digits, and for very deep nesting
        cause = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{location}: not JSON ({cause}). {rule_and_remedy}") from error


def row_values(
    table: TableFile, names: list[str] | None, location: str, row: Any
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the values of one row as text, and those of `TableFile.as_is` unchanged.

    Args:
        table: Requested columns.
        names: Names of the values of a row that is a list.
        location: Line or row in the file, for messages.
        row: Parsed value of any type.

    Raises:
        DataError: The row is not an object, or a requested value is missing or not text.
    """
    file_and_row = f"{table.path}, {location}"
    if isinstance(row, list) and names is not None:
        if len(row) != len(names):
            raise DataError(
                f"{file_and_row}: {len(row)} values, format.columns has {len(names)}. Each row must have as many "
                "values as there are columns. Correct or remove the row."
            )
        row = dict(zip(names, row, strict=True))
    if not isinstance(row, dict):
        raise DataError(
            f"{file_and_row}: {type(row).__name__}, not an object. Each {location.split()[0]} must be one JSON object. "
            "Correct or remove it."
        )
    check_columns(table.path, location, [*table.columns, *table.as_is], list(row))
    texts = {
        column: _text_of(file_and_row, column, row[column], column in table.list_columns) for column in table.columns
    }
    return texts, {column: row[column] for column in table.as_is}


def _text_of(location: str, column: str, value: Any, may_be_list: bool) -> str:
    if may_be_list and isinstance(value, list) and all(map(has_text, value)):
        value = json.dumps([str(item) for item in value], ensure_ascii=False)
    if not has_text(value):
        kinds = "text, a finite number or a list of them" if may_be_list else "text or a finite number"
        raise DataError(f"{location}: {column!r} is {value!r}. It must be {kinds}. Correct or remove the row.")
    text = str(value)
    if not text.isascii():
        check_surrogates(location, column, text)
    return text


def has_text(value: Any) -> bool:
    """Returns whether a JSON value is text or a finite number; many programs write NaN for missing values."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def check_surrogates(location: str, column: str, text: str) -> None:
    r"""Rejects an escape such as "\ud83d" without its other half, which is valid JSON but cannot be written as UTF-8.

    Raises:
        DataError: The text contains half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{location}: {column!r} holds \\u{ord(text[error.start]):04x}, half of a surrogate pair. UTF-8 cannot "
            "represent it. Write the whole pair or remove the row."
        ) from error
