"""Detects the layout of a CSV or TSV file: its delimiter, its quotes, and whether it has a header."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from framework.data.reading.files import head_of
from framework.data.reading.header import has_header
from framework.data.reading.table_format import AUTO, TAB, TableFile
from framework.data.reading.table_kind import head_lines

logger = logging.getLogger(__name__)

STAND_IN = "\x1f"
"""Unit separator of ASCII. It replaces a delimiter of several characters, which the csv module does not accept."""

_CSV_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, slots=True)
class DelimitedLayout:
    """Layout of a CSV or TSV file.

    Attributes:
        delimiter: Character between fields.
        quote: Character around fields that contain delimiters; None if quotes are part of the text.
        names: Column names; None if the first row contains them.
        long_delimiter: Delimiter of several characters that `delimiter` replaces; None without such a delimiter.
    """

    delimiter: str
    quote: str | None
    names: list[str] | None
    long_delimiter: str | None = None


def delimited_layout(table: TableFile) -> DelimitedLayout:
    """Detects the layout from the format and the first lines.

    Raises:
        DataError: The file cannot be read, or is read without a header although its first row looks like one.
    """
    lines = head_lines(head_of(table.path), table.format)
    delimiter = _delimiter(table, lines)
    if len(delimiter) > 1:
        lines = [line.replace(delimiter, STAND_IN) for line in lines]
        long_delimiter, delimiter, quote = delimiter, STAND_IN, None
    else:
        long_delimiter = None
        quote = _quote(lines, delimiter) if table.format.quote == AUTO else table.format.quote
    names = table.format.columns
    rows = list(_rows(lines, delimiter, quote))
    if rows and has_header(f"{table.path}, line 1", table.format, table.columns, rows):
        if names is not None:
            logger.info("%s: the first line is read as a header: %s", table.path, ", ".join(rows[0]))
        names = None
    return DelimitedLayout(delimiter, quote, names, long_delimiter)


def _delimiter(table: TableFile, lines: Sequence[str]) -> str:
    """Returns the delimiter of the format or the kind; for CSV, another one if no comma separates the first rows."""
    given = table.format.delimiter
    if given is not None:
        return "\t" if given == TAB else given
    if table.kind == "tsv":
        return "\t"
    for delimiter in _CSV_DELIMITERS:
        rows = list(_rows(lines, delimiter, '"'))
        first = {cell.strip() for cell in rows[0]} if rows else set()
        num_columns = None if table.format.columns is None else len(table.format.columns)
        if set(table.columns) <= first or (num_columns != 1 and {len(row) for row in rows} == {num_columns}):
            return delimiter
    return ","


def _quote(lines: Sequence[str], delimiter: str) -> str | None:
    """Returns the double quote if the first rows use it as `csv` does, else None.

    A single quote that begins a field is text. With delimiters that are rare in text, quotes are therefore part of the
    text unless rows cannot be split otherwise, quotes are doubled, or all fields of a column are quoted.
    """
    if delimiter == ",":
        return '"'
    rows = [line.split(delimiter) for line in lines]
    if len({len(row) for row in rows}) > 1:
        quoted = list(_rows(lines, delimiter, '"'))
        return '"' if quoted and len({len(row) for row in quoted}) == 1 else None
    opened = [cell for row in rows for cell in row if cell.startswith('"')]
    if not opened or not all(map(_is_quoted, opened)):
        return None
    is_whole_column = any(all(cell.startswith('"') for cell in column) for column in zip(*rows[1:], strict=True))
    return '"' if is_whole_column or any('""' in cell[1:-1] for cell in opened) else None


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell.endswith('"') and '"' not in cell[1:-1].replace('""', "")


def _rows(lines: Sequence[str], delimiter: str, quote: str | None) -> Iterator[list[str]]:
    """Yields the complete rows of the first lines."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        (f"{line}\n" for line in lines),
        delimiter=delimiter,
        quotechar=quote,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        yield from (row for row in reader if row)
    except csv.Error:
        return
