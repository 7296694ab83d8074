"""Types of tables: the format of a file, the requested columns, and a row."""

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from framework.errors import ConfigError, DataError

AUTO = "auto"
TAB = "tab"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        number: Number of the row from 1; the header does not count, skipped rows do.
        line: Line of the file, counted from 1, at which the row ends; None if the file has no lines.
        values: Text of each requested column.
        file: File of the row, relative to the folder that is read; None if one file contains all rows.
        kept: Values of the columns in `TableFile.as_is`, with their types; null is None.
    """

    number: int
    line: int | None
    values: dict[str, str]
    file: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """File, row or line, for messages."""
        if self.file is not None:
            return f"file {self.file}"
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


@dataclass(frozen=True)
class TableFormat:
    """Format settings that cannot be detected from a file.

    Attributes:
        kind: Kind of files whose name and content do not determine it.
        columns: Names for rows that have none: CSV and TSV without a header, and JSON rows that are lists.
        header: True if the first row contains the names. None means True if `columns` is None or the first row contains
            the requested names; a first row that only looks like a header is then an error.
        delimiter: Separator of the fields of CSV and TSV; "tab" for a tab. With several characters ("::") fields are
            not quoted. None means a tab in TSV; in CSV a comma, or else the semicolon, tab or bar that separates the
            first rows.
        quote: Character around fields of CSV and TSV that contain delimiters. None means that quotes are part of the
            text. "auto" means the double quote in CSV; with other delimiters only if the first rows are quoted as `csv`
            does.
        encoding: Encoding of text files; any that Python knows and in which a line end is the single byte of ASCII.

    Raises:
        ConfigError: A name is repeated, the quote is not a single character, the delimiter is empty, `header` is false
            without `columns`, or the encoding is not supported.
    """

    kind: Literal["csv", "tsv", "jsonl", "json"] | None = None
    columns: list[str] | None = None
    header: bool | None = None
    delimiter: str | None = None
    quote: str | None = AUTO
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ConfigError(
                f"format.columns is {self.columns}, which repeats a name. Names must be unique. Rename one of them."
            )
        if self.header is False and self.columns is None:
            raise ConfigError(
                "format.header is false and format.columns is null. Columns without a header need names. List them in "
                "format.columns, in the order of the file."
            )
        if self.quote not in (None, AUTO) and len(self.quote) != 1:
            raise ConfigError(f"format.quote is {self.quote!r}. It must be one character, {AUTO!r} or null.")
        if self.delimiter == "":
            raise ConfigError("format.delimiter is empty. Fields need a separator. Give one, or null.")
        check_encoding("format.encoding", self.encoding)

    @property
    def codec(self) -> str:
        """Python's name of the encoding: "utf-8" for "UTF8"."""
        return check_encoding("format.encoding", self.encoding)


@dataclass(frozen=True, slots=True)
class TableFile:
    """File of a table, with the requested columns.

    Attributes:
        path: Path of the file.
        columns: Names of the requested columns.
        format: Format of the file.
        list_columns: Requested columns whose values may be lists of texts; lists are returned as JSON.
        parts: Keys of a JSON object whose values are rows; empty if the file is a list of rows.
        kind: Kind of the file (`framework.data.reading.table_kind`).
        reason: Reason for the detected kind, for messages.
        as_is: Columns whose values are also kept unchanged (`Row.kept`).
    """

    path: Path
    columns: Sequence[str]
    format: TableFormat = field(default_factory=TableFormat)
    list_columns: Collection[str] = ()
    parts: tuple[str, ...] = ()
    kind: str = "csv"
    reason: str = ""
    as_is: Sequence[str] = ()


def check_encoding(key: str, encoding: str) -> str:
    """Returns Python's name of an encoding: "utf-8" for "UTF8".

    Args:
        key: Config key, for messages.
        encoding: Encoding of text files.

    Raises:
        ConfigError: Python does not know the encoding, or a line end in it is not the single byte of ASCII.
    """
    try:
        line_end = "\n".encode(encoding)
    except LookupError as error:
        raise ConfigError(
            f"{key} is {encoding!r}, which Python does not know. Use one of its standard encodings, such as utf-8 or "
            "latin-1."
        ) from error
    if line_end != b"\n":
        raise ConfigError(
            f"{key} is {encoding!r}, in which a line end is more than one byte. Lines must end in one byte. Convert "
            "the file to UTF-8 (iconv)."
        )
    return codecs.lookup(encoding).name


def check_columns(
    path: Path | str, location: str, requested: Sequence[str], present: Sequence[str], reason: str = ""
) -> None:
    """Checks that each requested column exists once.

    Args:
        path: File, for messages.
        location: Position of the names in the file, for messages.
        requested: Names of the requested columns.
        present: Names of the existing columns.
        reason: Note in brackets on the detected format, which may be wrong.

    Raises:
        DataError: A requested column is missing, or occurs more than once.
    """
    for column in requested:
        if column not in present:
            raise DataError(
                f"{path}, {location}: no column {column!r} among {list(present)}{reason}. The columns "
                f"{list(requested)} are read. Name columns of the file."
            )
        if present.count(column) > 1:
            raise DataError(
                f"{path}, {location}: column {column!r} occurs more than once. Requested names must be unique. Rename "
                "all but one of them."
            )
