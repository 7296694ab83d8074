"""Rows of text whose fields stand between marks: CSV, TSV and their relatives."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from framework.data.reading.files import Reading, decode_line, kind_of, raw_lines
from framework.data.reading.table_format import Row, TableFile, check_columns
from framework.errors import DataError


class _DecodedLines:
    """The lines of a file for the CSV reader.

    A line that is not in the encoding is given with replacement characters, so that the reader goes on to the end of
    its row.

    Attributes:
        fault: What was wrong with the first such line since `fault` was last set to None.
    """

    def __init__(self, path: Path, encoding: str, reading: Reading) -> None:
        self.fault: DataError | None = None
        self._path = path
        self._encoding = encoding
        self._lines = raw_lines(path, reading)

    def __iter__(self) -> "_DecodedLines":
        return self

    def __next__(self) -> str:
        number, raw = next(self._lines)
        try:
            return decode_line(self._path, number, raw, self._encoding)
        except DataError as error:
            self.fault = self.fault or error
            return raw.decode(self._encoding, "replace")


def read_delimited(table: TableFile, reading: Reading) -> Iterator[Row]:
    """Streams the rows of CSV or TSV, quoted as by `csv`.

    Raises:
        DataError: The file cannot be read, a column is missing, or a row is broken and `reading` does not skip those.
    """
    # The csv module refuses fields above 128 KiB unless told otherwise; documents may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    path, form = table.path, table.format
    kind = form.kind or kind_of(path).removeprefix(".")
    lines = _DecodedLines(path, form.codec, reading)
    reader = csv.reader(
        lines,
        delimiter=form.delimiter or ("\t" if kind == "tsv" else ","),
        quotechar=form.quote,
        quoting=csv.QUOTE_MINIMAL if form.quote else csv.QUOTE_NONE,
        strict=True,
    )
    header = form.columns if form.columns is not None else _header(path, reader, lines)
    check_columns(path, "line 1" if form.columns is None else "format.columns", table.columns, header)
    places = [header.index(column) for column in table.columns]
    number = 0
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is not closed takes other rows with it; each of these lines is counted as one.
            last = reader.line_num
            where = f"line {last}" if first == last else f"lines {first} to {last}"
            broken = DataError(
                f"{path}, row {number + 1} ({where}): {error}; quote the field, double the quotes in it."
            )
            reading.bad_row(broken, num_rows=last - first + 1)
            number += last - first + 1
            lines.fault = None
            continue
        if not fields:
            continue
        number += 1
        fault, lines.fault = lines.fault, None
        if fault is None:
            fault = _fault_of(fields, header, f"{path}, row {number} (line {reader.line_num})", form.columns is None)
        if fault is not None:
            reading.bad_row(fault)
        else:
            values = {column: fields[place] for column, place in zip(table.columns, places, strict=True)}
            yield Row(number, reader.line_num, values)


def _header(path: Path, reader: Iterator[list[str]], lines: _DecodedLines) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(
            f"{path}, line 1: {error}; the header must be one line of names, quoted where needed."
        ) from error
    if lines.fault is not None:
        raise lines.fault
    return header


def _fault_of(fields: list[str], header: list[str], place: str, has_header: bool) -> DataError | None:
    if len(fields) != len(header):
        names = "the header has" if has_header else "format.columns has"
        return DataError(
            f"{place}: {len(fields)} fields, {names} {len(header)}; quote fields that hold the delimiter, a quote or a "
            "line end."
        )
    if not has_header and fields == header:
        return DataError(
            f"{place}: these are the names of format.columns; set it to null, since the file has a header."
        )
    return None
