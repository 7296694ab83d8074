"""Reads rows of delimited text: CSV, TSV and similar formats."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from framework.data.reading.delimited_layout import DelimitedLayout, delimited_layout
from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.table_format import Row, TableFile, check_columns
from framework.errors import DataError


class _DecodedLines:
    """Iterator over the decoded lines of a file, for the CSV reader.

    A line with invalid bytes is decoded with replacement characters, so that the CSV reader reaches the end of its row.

    Attributes:
        fault: Error of the first such line since `fault` was last set to None.
        lines_of_row: Lines read since the list was last cleared.
    """

    def __init__(self, path: Path, encoding: str, reading: Reading, layout: DelimitedLayout) -> None:
        self.fault: DataError | None = None
        self.lines_of_row: list[str] = []
        self._path = path
        self._encoding = encoding
        self._lines = raw_lines(path, reading)
        self._layout = layout

    def __iter__(self) -> "_DecodedLines":
        return self

    def __next__(self) -> str:
        number, raw = next(self._lines)
        try:
            line = decode_line(self._path, number, raw, self._encoding)
        except DataError as error:
            self.fault = self.fault or error
            line = raw.decode(self._encoding, "replace")
        if self._layout.long_delimiter is not None:
            line = line.replace(self._layout.long_delimiter, self._layout.delimiter)
        self.lines_of_row.append(line)
        return line


def read_delimited(table: TableFile, reading: Reading) -> Iterator[Row]:
    """Yields the rows of a CSV or TSV file.

    Raises:
        DataError: The file cannot be read, a column is missing, the file is read without a header but seems to have
            one, or a row is broken and `reading` does not skip such rows.
    """
    # The csv module rejects fields above 128 KiB by default; documents may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    path = table.path
    layout = delimited_layout(table)
    lines = _DecodedLines(path, table.format.codec, reading, layout)
    reader = csv.reader(
        lines,
        delimiter=layout.delimiter,
        quotechar=layout.quote,
        quoting=csv.QUOTE_MINIMAL if layout.quote else csv.QUOTE_NONE,
        strict=True,
    )
    header = _header(path, reader, lines) if layout.names is None else layout.names
    location = "line 1" if layout.names is None else "format.columns"
    delimiter = layout.long_delimiter or layout.delimiter
    reason = f" (read as {table.kind.upper()} {table.reason}, with delimiter {delimiter!r})"
    columns = [*table.columns, *table.as_is]
    check_columns(path, location, columns, header, reason)
    indices = {column: header.index(column) for column in columns}
    number = 0
    lost: DataError | None
    while True:
        first = reader.line_num + 1
        lines.lines_of_row.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lost = _open_quote(path, number + 1, first, reader.line_num, error)
        else:
            if not fields:
                continue
            lost = _merged(path, number + 1, first, lines.lines_of_row, layout, len(header))
        if lost is not None:
            # An unclosed quote swallows other rows. Each of these lines counts as one row.
            num_lines = reader.line_num - first + 1
            reading.bad_row(lost, num_lines)
            number += num_lines
            lines.fault = None
            continue
        number += 1
        fault, lines.fault = lines.fault, None
        if fault is None:
            fault = _fault_of(fields, header, f"{path}, row {number} (line {reader.line_num})", layout.names is None)
        if fault is not None:
            reading.bad_row(fault)
        else:
            values, kept = (
                {column: fields[indices[column]] for column in some} for some in (table.columns, table.as_is)
            )
            yield Row(number, reader.line_num, values, kept=kept)


def _header(path: Path, reader: Iterator[list[str]], lines: _DecodedLines) -> list[str]:
    try:
        header = next((row for row in reader if row), [])
    except csv.Error as error:
        raise DataError(
            f"{path}, line 1: {error}. The header must be one line of names. Correct it, and quote names that contain "
            "the delimiter."
        ) from error
    if lines.fault is not None:
        raise lines.fault
    return [name.strip() for name in header]


def _open_quote(path: Path, number: int, first: int, last: int, error: csv.Error) -> DataError:
    lines = f"line {last}" if first == last else f"lines {first} to {last}"
    return DataError(
        f"{path}, row {number} ({lines}): {error}. Quotes begin and end a field, and are doubled inside. Correct "
        "the quotes, or set format.quote=null if they are part of the text."
    )


def _merged(
    path: Path, number: int, first: int, lines: list[str], layout: DelimitedLayout, num_columns: int
) -> DataError | None:
    """Returns the error for a TSV row that stray quotes merged from several lines, each a complete row; else None."""
    if len(lines) == 1 or layout.delimiter != "\t" or num_columns == 1:
        return None
    if any(line.count("\t") + 1 != num_columns for line in lines):
        return None
    more = len(lines) - 1
    return DataError(
        f"{path}, rows {number} to {number + more} (lines {first} to {first + more}): a quote opens in the first line "
        f"and closes in the last, but each line alone has {num_columns} fields. A quoted field must not "
        "span rows. Set format.quote=null if quotes are part of the text, or double the quotes."
    )


def _fault_of(fields: list[str], header: list[str], location: str, has_header: bool) -> DataError | None:
    if len(fields) == len(header):
        return None
    names = "the header has" if has_header else "format.columns has"
    return DataError(
        f"{location}: {len(fields)} fields, {names} {len(header)}. Each row must have as many fields as there are "
        "columns. Quote fields that contain the delimiter, a quote or a line end."
    )
