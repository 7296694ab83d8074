"""Documents from files: plain text, CSV, TSV and JSONL, UTF-8 only.

A source is a small dataclass whose `read` streams texts; every fault of a file is a DataError that names the file and
the line or row. Cleaning, duplicates and sentences are the work of `framework.data.documents`.
"""

import csv
import glob
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from framework.errors import ConfigError, DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")


class Source(Protocol):
    """Something that gives documents."""

    def paths(self) -> list[Path]:
        """The files, in the order in which they are read."""

    def read(self, advance: Callable[[int], None]) -> Iterator[str]:
        """Streams the texts of the documents, empty ones too; `advance` is told the bytes that were read."""


@dataclass(frozen=True)
class TextFiles:
    """Plain text files.

    Attributes:
        files: A path or glob (`**` enters folders), or several.
        documents: "file": each file is a document. "blank_lines": blank lines separate documents.
        exclude: Paths or globs of files that are left out although `files` matches them.
    """

    files: str | Sequence[str]
    documents: Literal["file", "blank_lines"] = "file"
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.documents not in ("file", "blank_lines"):
            raise ConfigError(f"documents={self.documents!r} is not known; use 'file' or 'blank_lines'.")

    def paths(self) -> list[Path]:
        """The matching files, sorted within each pattern.

        Raises:
            DataError: A pattern matches no file.
        """
        return find_files(self.files, self.exclude)

    def read(self, advance: Callable[[int], None]) -> Iterator[str]:
        """Streams the documents.

        Raises:
            DataError: A file is missing, empty or not UTF-8.
        """
        for path in self.paths():
            lines = (line for _, line in read_lines(path, advance))
            if self.documents == "file":
                yield "".join(lines)
            else:
                yield from _split_at_blank_lines(lines)


@dataclass(frozen=True)
class TableFiles:
    """Rows of CSV, TSV or JSONL files (told by the suffix); each row's text is a document.

    Attributes:
        files: A path or glob, or several.
        text_column: Column (JSONL: key) that holds the text.
        where: {column: value}; only rows that have all these values are taken.
    """

    files: str | Sequence[str]
    text_column: str = "text"
    where: Mapping[str, object] | None = None

    def paths(self) -> list[Path]:
        """The matching files, sorted within each pattern.

        Raises:
            DataError: A pattern matches no file.
        """
        return find_files(self.files)

    def read(self, advance: Callable[[int], None]) -> Iterator[str]:
        """Streams the texts of the rows.

        Raises:
            DataError: A file is missing, empty or not UTF-8, a column is missing, a row is broken, or no row fits
                `where`.
        """
        wanted = {column: str(value) for column, value in (self.where or {}).items()}
        for path in self.paths():
            found = False
            for row in read_rows(path, [self.text_column, *wanted], advance):
                if all(row.values[column] == value for column, value in wanted.items()):
                    found = True
                    yield row.values[self.text_column]
            if not found:
                raise DataError(f"{path} has no row where {wanted}; correct `where`, or leave the file out.")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        number: Counted from 1, the header not among them.
        line: Line of the file at which the row ends, counted from 1.
        values: Text of the wanted columns.
    """

    number: int
    line: int
    values: dict[str, str]


def find_files(patterns: str | Sequence[str], exclude: str | Sequence[str] = ()) -> list[Path]:
    """Expands paths and globs, each pattern's matches sorted, no file twice.

    Raises:
        DataError: A pattern matches no file.
    """
    left_out = {path for pattern in _as_list(exclude) for path in glob.glob(pattern, recursive=True)}
    found: dict[str, None] = {}
    for pattern in _as_list(patterns):
        # A path is taken as it is, so that brackets in a file's name do no harm.
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            raise DataError(f"no file matches {pattern!r}; give a path or glob of existing text files.")
        found.update(dict.fromkeys(match for match in matches if match not in left_out))
    if not found:
        raise DataError(f"`exclude` leaves none of the files that match {patterns!r}; shorten it.")
    return [Path(path) for path in found]


def read_lines(path: Path, advance: Callable[[int], None] | None = None) -> Iterator[tuple[int, str]]:
    """Streams (line number from 1, line with its ending); only the line feed ends a line, a byte order mark is dropped.

    Raises:
        DataError: The file cannot be opened, is empty or holds bytes that are not UTF-8.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path or its permissions.") from error
    with file:
        number = 0
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: byte 0x{raw[error.start]:02x} at place {error.start + 1} is not UTF-8; "
                    "convert the file to UTF-8 (iconv) or leave it out."
                ) from error
            if advance is not None:
                advance(len(raw))
            yield number, line
    if number == 0:
        raise DataError(f"{path} is empty, a source needs text; remove or replace the file.")


def read_rows(path: Path, columns: Sequence[str], advance: Callable[[int], None] | None = None) -> Iterator[Row]:
    """Streams the wanted columns of a CSV, TSV (both quoted as by `csv`, with a header) or JSONL file.

    Raises:
        DataError: The suffix is unknown, the file is missing, empty, without rows or not UTF-8, a column is missing, or
            a row is broken.
    """
    if path.suffix not in TABLE_SUFFIXES:
        raise DataError(
            f"{path} has suffix {path.suffix!r}, tables are told by {', '.join(TABLE_SUFFIXES)}; rename the file."
        )
    rows = _read_jsonl(path, columns, advance) if path.suffix == ".jsonl" else _read_csv(path, columns, advance)
    number = 0
    for number, (line, values) in enumerate(rows, start=1):
        yield Row(number, line, values)
    if number == 0:
        raise DataError(f"{path} has no rows; add some or leave the file out.")


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]


def _split_at_blank_lines(lines: Iterator[str]) -> Iterator[str]:
    document: list[str] = []
    for line in lines:
        if line.strip():
            document.append(line)
        elif document:
            yield "".join(document)
            document = []
    if document:
        yield "".join(document)


def _read_csv(
    path: Path, columns: Sequence[str], advance: Callable[[int], None] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    # The csv module refuses fields above 128 KiB unless told otherwise; documents may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = (line for _, line in read_lines(path, advance))
    reader = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    number = 0
    try:
        header = next(reader)
        _check_columns(path, "line 1", columns, header)
        places = [header.index(column) for column in columns]
        for number, fields in enumerate((fields for fields in reader if fields), start=1):
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, row {number} (line {reader.line_num}): {len(fields)} fields, the header has "
                    f"{len(header)}; "
                    "quote fields that hold the delimiter, a quote or a line end."
                )
            yield reader.line_num, {column: fields[place] for column, place in zip(columns, places, strict=True)}
    except csv.Error as error:
        raise DataError(
            f"{path}, row {number + 1} (line {reader.line_num}): {error}; quote the field and double the quotes in it."
        ) from error


def _read_jsonl(
    path: Path, columns: Sequence[str], advance: Callable[[int], None] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in read_lines(path, advance):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}); each line must be one JSON object."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: {type(row).__name__}, not an object; each line must be one JSON object."
            )
        _check_columns(path, f"line {number}", columns, list(row))
        for column in columns:
            if not isinstance(row[column], str | int | float):
                raise DataError(
                    f"{path}, line {number}: {column!r} is {row[column]!r}, it must be text or a number; correct or "
                    "remove the row."
                )
        yield number, {column: str(row[column]) for column in columns}


def _check_columns(path: Path, place: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    for column in wanted:
        if column not in present:
            raise DataError(f"{path}, {place}: no column {column!r} among {list(present)}; name one of these.")
