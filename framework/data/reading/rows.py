"""Reads rows of tables by column name: CSV, TSV, JSONL, JSON (plain, gzip or zstd), Parquet, Arrow, a folder per class.

`framework.data.reading.table_kind` detects the kind of a file.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from framework.data.reading.class_folders import read_folder
from framework.data.reading.delimited import read_delimited
from framework.data.reading.files import Reading, check_regular, kind_of
from framework.data.reading.json_rows import read_json
from framework.data.reading.table_format import Row, TableFile, TableFormat, check_columns
from framework.data.reading.table_kind import KIND_OF_SUFFIX, Kind, detect_kind
from framework.errors import DataError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_rows(
    path: Path,
    columns: Sequence[str],
    reading: Reading | None = None,
    table_format: TableFormat | None = None,
    list_columns: Collection[str] = (),
    as_is: Sequence[str] = (),
) -> Iterator[Row]:
    """Yields the rows of a table with the requested columns.

    Args:
        path: File to read. Keys after a JSON file select lists of its object: `FILE.json:KEY+KEY`.
        columns: Names of the requested columns.
        reading: Handling of broken rows; None raises an error for each.
        table_format: Format of the file; None uses the defaults of TableFormat.
        list_columns: Requested columns whose values may be lists in JSON and Arrow; lists are returned as JSON.
        as_is: Columns whose values are also kept unchanged, of any type and including empty ones (`Row.kept`).

    Raises:
        DataError: The kind is unknown, the file is missing, empty, damaged or without rows, a column is missing, or
            a row is broken and `reading` does not skip such rows.
    """
    reading = reading or Reading()
    table_format = table_format or TableFormat()
    file, parts = _file_and_parts(path)
    detected = detect_kind(file, table_format)
    if reading.unit_column is not None:
        as_is = list(dict.fromkeys([*as_is, reading.unit_column]))
    table = TableFile(file, columns, table_format, list_columns, parts, detected.kind, detected.reason, as_is)
    number = 0
    for row in _READERS[detected.kind](table, reading):
        number = row.number
        reading.keep_unit(f"{path}, {row.location}", row.kept)
        yield row
    if number == 0 and reading.num_skipped == 0:
        raise DataError(f"{path} has no rows. A table needs at least one. Add rows or leave the file out.")


def is_table(path: Path) -> bool:
    """Returns True for folders and for files whose name has the suffix of a table."""
    return path.is_dir() or kind_of(_file_and_parts(path)[0]) in KIND_OF_SUFFIX


def _file_and_parts(path: Path) -> tuple[Path, tuple[str, ...]]:
    file, mark, parts = str(path).rpartition(":")
    if not mark or path.exists() or kind_of(Path(file)) != ".json":
        return path, ()
    return Path(file), tuple(parts.split("+"))


def _read_arrow(table: TableFile, reading: Reading) -> Iterator[Row]:
    columns = list(dict.fromkeys([*table.columns, *table.as_is]))
    batches = record_batches(table.path, columns, reading, table.kind)
    return rows_of_batches(table.path, batches, table.columns, reading, table.list_columns, table.as_is)


def record_batches(path: Path, columns: Sequence[str] | None, reading: Reading, kind: str) -> Iterator[pa.RecordBatch]:
    """Yields the record batches of a Parquet or Arrow file (a stream or file of Arrow's IPC format).

    Args:
        path: File to read.
        columns: Names of the requested columns; None reads all.
        reading: Receiver of the progress.
        kind: Kind of the file, "parquet" or "arrow".

    Raises:
        DataError: The file is missing or damaged, or a column is missing.
    """
    number = 0
    check_regular(path)
    try:
        with path.open("rb"):
            pass  # Raises Python's own error for a missing file or a folder.
        for batch in (_parquet_batches if kind == "parquet" else _arrow_batches)(path, columns, reading):
            _check_content(batch)
            yield batch
            number += batch.num_rows
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last for names of columns
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"{path} cannot be read ({error.strerror}). Correct the path or its permissions."
            ) from error
        # pyarrow reports broken content by any of these errors; an OSError then has no number.
        state = f"damaged after row {number}" if number else f"damaged or not a file of kind {kind}"
        raise DataError(f"{path} is {state} ({' '.join(str(error).split())}). Fetch or write it again.") from error


def _parquet_batches(path: Path, columns: Sequence[str] | None, reading: Reading) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, memory_map=True) as file:
        check_columns(path, "schema", columns or (), file.schema_arrow.names)
        names = None if columns is None else list(columns)
        groups, size = file.metadata.num_row_groups, path.stat().st_size
        number = 0
        for group in range(groups):
            for batch in file.iter_batches(columns=names, row_groups=[group], batch_size=1024):
                yield batch
                number += batch.num_rows
            reading.advance(size * (group + 1) // groups - size * group // groups)
        if number != file.metadata.num_rows:
            raise pa.ArrowInvalid(f"it has {number} rows, but {file.metadata.num_rows} according to the footer")


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
                raise pa.ArrowInvalid("the first stream is followed by another one")


def _check_content(batch: pa.RecordBatch) -> None:
    """Rejects invalid offsets and indices, with which pyarrow would read unrelated memory."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        # Texts with invalid UTF-8 are handled as bad rows later.
        for column in batch.columns:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
            column.validate(full=True)


def check_end_of_stream(path: Path) -> None:
    """Checks the end mark of an Arrow stream. Without it, a stream cut between two batches would just have fewer rows.

    Raises:
        DataError: The mark is missing.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_END_OF_STREAM)))
        if file.read() != _END_OF_STREAM:
            raise DataError(
                f"{path} is damaged: the mark at the end of an Arrow stream is missing. Rows may be lost. Fetch or "
                "write it again."
            )


def rows_of_batches(
    path: Path | str,
    batches: Iterable[pa.RecordBatch],
    columns: Sequence[str],
    reading: Reading,
    list_columns: Collection[str] = (),
    as_is: Sequence[str] = (),
) -> Iterator[Row]:
    """Yields the rows of record batches.

    Args:
        path: File of the batches, for messages.
        batches: Record batches with the requested columns.
        columns: Names of the requested columns.
        reading: Handling of rows in which a value is missing or not UTF-8.
        list_columns: Requested columns whose values may be lists; lists are returned as JSON.
        as_is: Columns whose values are also kept unchanged (`Row.kept`).

    Raises:
        DataError: A column holds neither text nor numbers, or a value is missing or not UTF-8 and `reading` does not
            skip the row.
    """
    number = 0
    for batch in batches:
        texts = [
            _list_values(batch.column(column))
            if column in list_columns and _is_list(batch.column(column))
            else _column_values(path, column, batch.column(column))
            for column in columns
        ]
        kept_columns = {column: _plain_values(batch.column(column)) for column in as_is}
        for index, values in enumerate(zip(*texts, strict=True)):
            number += 1
            row = {column: value for column, value in zip(columns, values, strict=True) if isinstance(value, str)}
            if len(row) == len(columns):
                yield Row(number, None, row, kept={column: kept[index] for column, kept in kept_columns.items()})
                continue
            bad = next(position for position, value in enumerate(values) if not isinstance(value, str))
            fault = "has no value. Fill it in" if values[bad] is None else "is not UTF-8. Correct it"
            reading.bad_row(DataError(f"{path}, row {number}: {columns[bad]!r} {fault} or remove the row."))


def _is_list(column: pa.Array) -> bool:
    return pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


def _list_values(column: pa.Array) -> list[str | bytes | None]:
    """Returns lists as JSON; None for a missing list or one with a missing item."""
    return [
        None
        if value is None or any(map(_is_missing, value))
        else json.dumps([str(item) for item in value], ensure_ascii=False)
        for value in column.to_pylist()
    ]


def _plain_values(column: pa.Array) -> list[Any]:
    """Returns values as JSON types; types that JSON lacks (dates, decimals, bytes) become text."""
    return [json.loads(json.dumps(value, default=str)) for value in column.to_pylist()]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _column_values(path: Path | str, name: str, column: pa.Array) -> list[str | bytes | None]:
    """Returns texts; bytes if they are not UTF-8, and None for missing values, NaN and infinity."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    try:
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            return column.cast(pa.string()).to_pylist()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: column {name!r} is of type {column.type}. It must hold text or numbers. Name another column."
        ) from error
    except UnicodeDecodeError:
        pass
    values: list[str | bytes | None] = column.cast(pa.large_binary()).to_pylist()
    for index, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                values[index] = value.decode()
            except UnicodeDecodeError:
                continue
    return values


_READERS: dict[Kind, Callable[[TableFile, Reading], Iterator[Row]]] = {
    "csv": read_delimited,
    "tsv": read_delimited,
    "jsonl": read_json,
    "json": read_json,
    "parquet": _read_arrow,
    "arrow": _read_arrow,
    "folder": read_folder,
}
