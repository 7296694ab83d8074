"""Rows of tables by column name: CSV, TSV, JSONL (plain, gzip or zstd), Parquet and Arrow, told by the suffix."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from framework.data.reading.files import COMPRESSIONS, Reading, decode_line, kind_of, raw_lines
from framework.errors import DataError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        number: Counted from 1, the header not among them, rows that were left out among them.
        line: Line of the file at which the row ends, counted from 1; None where the file has no lines.
        values: Text of the wanted columns.
    """

    number: int
    line: int | None
    values: dict[str, str]

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


def read_rows(path: Path, columns: Sequence[str], reading: Reading | None = None) -> Iterator[Row]:
    """Streams the wanted columns; CSV and TSV are quoted as by `csv`, with a header.

    Raises:
        DataError: The suffix is unknown, the file is missing, empty, damaged or without rows, a column is missing, or
            a row is broken and `reading` does not skip those.
    """
    reading = reading or Reading()
    reader = _READERS.get(kind_of(path))
    if reader is None or (reader is _read_arrow and path.suffix.lower() in COMPRESSIONS):
        raise DataError(
            f"{path} has a suffix that tells no table; rename it to one of {', '.join(_READERS)}, of which those of "
            f"text may be followed by {' or '.join(COMPRESSIONS)}."
        )
    number = 0
    for row in reader(path, columns, reading):
        number = row.number
        yield row
    if number == 0 and reading.num_skipped == 0:
        raise DataError(f"{path} has no rows; add some or leave the file out.")


class _DecodedLines:
    """The lines of a file for the CSV reader.

    A line that is no UTF-8 is given with replacement characters, so that the reader goes on to the end of its row.

    Attributes:
        fault: What was wrong with the first such line since `fault` was last set to None.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self.fault: DataError | None = None
        self._path = path
        self._lines = raw_lines(path, reading)

    def __iter__(self) -> "_DecodedLines":
        return self

    def __next__(self) -> str:
        number, raw = next(self._lines)
        try:
            return decode_line(self._path, number, raw)
        except DataError as error:
            self.fault = self.fault or error
            return raw.decode("utf-8", "replace")


def _read_csv(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    # The csv module refuses fields above 128 KiB unless told otherwise; documents may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    lines = _DecodedLines(path, reading)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(
            f"{path}, line 1: {error}; the header must be one line of names, quoted where needed."
        ) from error
    if lines.fault is not None:
        raise lines.fault
    check_columns(path, "line 1", columns, header)
    places = [header.index(column) for column in columns]
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
        if fault is None and len(fields) != len(header):
            fault = DataError(
                f"{path}, row {number} (line {reader.line_num}): {len(fields)} fields, the header has {len(header)}; "
                "quote fields that hold the delimiter, a quote or a line end."
            )
        if fault is not None:
            reading.bad_row(fault)
        else:
            values = {column: fields[place] for column, place in zip(columns, places, strict=True)}
            yield Row(number, reader.line_num, values)


def _read_jsonl(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    number = 0
    for line, raw in raw_lines(path, reading):
        if not raw.strip():
            continue
        number += 1
        try:
            values = _json_values(path, line, decode_line(path, line, raw), columns)
        except DataError as error:
            reading.bad_row(error)
        else:
            yield Row(number, line, values)


def _json_values(path: Path, line: int, text: str, columns: Sequence[str]) -> dict[str, str]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and very deep nesting
        cause = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{path}, line {line}: not JSON ({cause}); each line must be one JSON object.") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: {type(row).__name__}, not an object; each line must be one JSON object.")
    check_columns(path, f"line {line}", columns, list(row))
    for column in columns:
        if not isinstance(row[column], str | int | float):
            raise DataError(
                f"{path}, line {line}: {column!r} is {row[column]!r}, it must be text or a number; correct or remove "
                "the row."
            )
    values = {column: str(row[column]) for column in columns}
    if "\\u" in text:
        _check_surrogates(path, line, values)
    return values


def _check_surrogates(path: Path, line: int, values: dict[str, str]) -> None:
    r"""An escape such as "\ud83d" without its other half is valid JSON, but no text, and cannot be written as UTF-8."""
    for column, value in values.items():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}, line {line}: {column!r} holds \\u{ord(value[error.start]):04x}, half of a surrogate pair; "
                "write the whole pair or remove the row."
            ) from error


def _read_arrow(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    return rows_of_batches(path, record_batches(path, columns, reading), columns, reading)


def record_batches(path: Path, columns: Sequence[str] | None, reading: Reading) -> Iterator[pa.RecordBatch]:
    """Streams the record batches of a Parquet or Arrow file (a stream or file of Arrow's IPC format).

    Args:
        path: Its suffix tells which of them it is.
        columns: The wanted ones; None for all.
        reading: Is told how far it is.

    Raises:
        DataError: The file is missing or damaged, or a column is missing.
    """
    number = 0
    try:
        with path.open("rb"):
            pass  # Tells a missing file or a folder in Python's words.
        for batch in (_parquet_batches if kind_of(path) == ".parquet" else _arrow_batches)(path, columns, reading):
            _check_content(batch)
            yield batch
            number += batch.num_rows
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last for names of columns
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); correct the path or its permissions."
            ) from error
        # pyarrow tells broken content by either, an OSError without a number.
        what = f"damaged behind row {number}" if number else f"damaged or no {kind_of(path)[1:]} file"
        raise DataError(f"{path} is {what} ({' '.join(str(error).split())}); fetch or write it again.") from error


def _parquet_batches(path: Path, columns: Sequence[str] | None, reading: Reading) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, memory_map=True) as file:
        check_columns(path, "schema", columns or (), file.schema_arrow.names)
        wanted = None if columns is None else list(columns)
        groups, size = file.metadata.num_row_groups, path.stat().st_size
        number = 0
        for group in range(groups):
            for batch in file.iter_batches(columns=wanted, row_groups=[group], batch_size=1024):
                yield batch
                number += batch.num_rows
            reading.advance(size * (group + 1) // groups - size * group // groups)
        if number != file.metadata.num_rows:
            raise pa.ArrowInvalid(f"{number} rows, and {file.metadata.num_rows} by the footer")


def _arrow_batches(path: Path, columns: Sequence[str] | None, reading: Reading) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        try:
            batches: Iterable[pa.RecordBatch] = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        done = 0
        for batch in batches:
            check_columns(path, "schema", columns or (), batch.schema.names)
            yield batch if columns is None else batch.select(list(columns))
            reading.advance(file.tell() - done)
            done = file.tell()
        reading.advance(file.size() - done)
        if isinstance(batches, pa.ipc.RecordBatchStreamReader):
            check_end_of_stream(path)
            if file.tell() != file.size():
                raise pa.ArrowInvalid("there is another stream behind the first")


def _check_content(batch: pa.RecordBatch) -> None:
    """Offsets and indices that point elsewhere would be trusted by pyarrow, and read from whatever memory is there."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        # Texts that are no UTF-8 are a matter of their rows.
        for column in batch.columns:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
            column.validate(full=True)


def check_end_of_stream(path: Path) -> None:
    """Looks for the mark at the end: a stream that was cut between two batches would else just have fewer rows.

    Raises:
        DataError: It is missing.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_END_OF_STREAM)))
        if file.read() != _END_OF_STREAM:
            raise DataError(
                f"{path} is damaged: the mark at the end of an Arrow stream is missing, rows may be lost; fetch or "
                "write it again."
            )


def rows_of_batches(
    path: Path | str, batches: Iterable[pa.RecordBatch], columns: Sequence[str], reading: Reading
) -> Iterator[Row]:
    """Streams the rows of record batches.

    Args:
        path: Where they come from, for messages.
        batches: With the wanted columns.
        columns: Their names.
        reading: What to do with a row in which a value is missing or not UTF-8.

    Raises:
        DataError: A column holds neither text nor numbers, or a value is missing or not UTF-8 and `reading` does not
            skip the row.
    """
    number = 0
    for batch in batches:
        texts = [_column_values(path, column, batch.column(column)) for column in columns]
        for values in zip(*texts, strict=True):
            number += 1
            row = {column: value for column, value in zip(columns, values, strict=True) if isinstance(value, str)}
            if len(row) == len(columns):
                yield Row(number, None, row)
                continue
            bad = next(place for place, value in enumerate(values) if not isinstance(value, str))
            fault = "has no value; fill it in" if values[bad] is None else "is not UTF-8; correct it"
            reading.bad_row(DataError(f"{path}, row {number}: {columns[bad]!r} {fault} or remove the row."))


def _column_values(path: Path | str, name: str, column: pa.Array) -> list[str | bytes | None]:
    """Texts; bytes where they are not UTF-8."""
    try:
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            return column.cast(pa.string()).to_pylist()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: column {name!r} is of type {column.type}, it must hold text or numbers; name another column."
        ) from error
    except UnicodeDecodeError:
        pass
    values: list[str | bytes | None] = column.cast(pa.large_binary()).to_pylist()
    for place, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                values[place] = value.decode()
            except UnicodeDecodeError:
                continue
    return values


def check_columns(path: Path | str, place: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raises a DataError that names the first wanted column that is not there."""
    for column in wanted:
        if column not in present:
            raise DataError(f"{path}, {place}: no column {column!r} among {list(present)}; name one of these.")
        if present.count(column) > 1:
            raise DataError(f"{path}, {place}: column {column!r} comes more than once; rename all but one of them.")


_READERS: dict[str, Callable[[Path, Sequence[str], Reading], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
}
