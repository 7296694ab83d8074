"""Rows of tables by column name: CSV, TSV, JSONL (plain, gzip or zstd), Parquet and Arrow, told by the suffix."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from framework.data.files import COMPRESSIONS, Reading, decode_line, kind_of, raw_lines
from framework.errors import DataError


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
    """The lines of a file; unlike a generator it goes on after it raised."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._lines = raw_lines(path, reading)

    def __iter__(self) -> "_DecodedLines":
        return self

    def __next__(self) -> str:
        number, raw = next(self._lines)
        return decode_line(self._path, number, raw)


def _read_csv(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    # The csv module refuses fields above 128 KiB unless told otherwise; documents may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    reader = csv.reader(_DecodedLines(path, reading), delimiter=delimiter, strict=True)
    header = next(reader, [])
    _check_columns(path, "line 1", columns, header)
    places = [header.index(column) for column in columns]
    number = 0
    while True:
        number += 1
        try:
            fields = next(reader)
            if not fields:
                number -= 1
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, row {number} (line {reader.line_num}): {len(fields)} fields, the header has "
                    f"{len(header)}; quote fields that hold the delimiter, a quote or a line end."
                )
        except StopIteration:
            return
        except csv.Error as error:
            reading.bad_row(
                DataError(
                    f"{path}, row {number} (line {reader.line_num}): {error}; quote the field and double the quotes in "
                    "it."
                )
            )
        except DataError as error:
            reading.bad_row(error)
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
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {line}: not JSON ({error.msg}); each line must be one JSON object.") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: {type(row).__name__}, not an object; each line must be one JSON object.")
    _check_columns(path, f"line {line}", columns, list(row))
    for column in columns:
        if not isinstance(row[column], str | int | float):
            raise DataError(
                f"{path}, line {line}: {column!r} is {row[column]!r}, it must be text or a number; correct or remove "
                "the row."
            )
    return {column: str(row[column]) for column in columns}


def _read_arrow(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    try:
        yield from rows_of_batches(path, _record_batches(path, columns, reading), columns, reading)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is damaged or no {kind_of(path)[1:]} file ({str(error).splitlines()[0]}); fetch or write it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); correct the path or its permissions.") from error


def _record_batches(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[pa.RecordBatch]:
    if kind_of(path) == ".parquet":
        with pq.ParquetFile(path, memory_map=True) as file:
            _check_columns(path, "schema", columns, file.schema_arrow.names)
            groups, size = file.metadata.num_row_groups, path.stat().st_size
            for group in range(groups):
                yield from file.iter_batches(columns=list(columns), row_groups=[group], batch_size=1024)
                reading.advance(size * (group + 1) // groups - size * group // groups)
        return
    with pa.memory_map(str(path)) as file:
        try:
            batches: Iterable[pa.RecordBatch] = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        done = 0
        for batch in batches:
            _check_columns(path, "schema", columns, batch.schema.names)
            yield batch.select(list(columns))
            reading.advance(file.tell() - done)
            done = file.tell()
        reading.advance(file.size() - done)


def rows_of_batches(
    path: Path | str, batches: Iterable[pa.RecordBatch], columns: Sequence[str], reading: Reading
) -> Iterator[Row]:
    """Streams the rows of record batches.

    Args:
        path: Where they come from, for messages.
        batches: With the wanted columns.
        columns: Their names.
        reading: What to do with a row in which a value is missing.

    Raises:
        DataError: A column holds neither text nor numbers, or a value is missing and `reading` does not skip the row.
    """
    number = 0
    for batch in batches:
        texts = []
        for column in columns:
            try:
                texts.append(batch.column(column).cast(pa.string()).to_pylist())
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                kind = batch.schema.field(column).type
                raise DataError(
                    f"{path}: column {column!r} is of type {kind}, it must hold text or numbers; name another column."
                ) from error
        for values in zip(*texts, strict=True):
            number += 1
            row = dict(zip(columns, values, strict=True))
            missing = [column for column, value in row.items() if value is None]
            if missing:
                reading.bad_row(
                    DataError(f"{path}, row {number}: {missing[0]!r} has no value; fill it in or remove the row.")
                )
            else:
                yield Row(number, None, row)


def _check_columns(path: Path, place: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    for column in wanted:
        if column not in present:
            raise DataError(f"{path}, {place}: no column {column!r} among {list(present)}; name one of these.")


_READERS: dict[str, Callable[[Path, Sequence[str], Reading], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
}
