"""What a table is: how its file is written, and what a row of it is."""

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from framework.errors import ConfigError, DataError


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


@dataclass(frozen=True)
class TableFormat:
    """What the file of a table does not tell by itself.

    Attributes:
        kind: How text is laid out; None: as the suffix says.
        columns: Names for rows that have none: CSV and TSV without a header, and JSON rows that are lists.
        delimiter: Between the fields of CSV and TSV; None: a comma, in TSV a tab.
        quote: What fields of CSV and TSV are quoted with; None: a quote means nothing and is a part of the text.
        encoding: Of text files; any that Python knows and in which the byte of a line end is nothing else.

    Raises:
        ConfigError: A name comes twice, a mark is no single character, or the encoding is none of these.
    """

    kind: Literal["csv", "tsv", "jsonl", "json"] | None = None
    columns: list[str] | None = None
    delimiter: str | None = None
    quote: str | None = '"'
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"format.columns is {self.columns}, where a name comes twice; rename one of them.")
        for name in ("delimiter", "quote"):
            mark = getattr(self, name)
            if mark is not None and len(mark) != 1:
                raise ConfigError(f"format.{name} is {mark!r}, it must be one character, or null.")
        try:
            line_end = "\n".encode(self.encoding)
        except LookupError as error:
            raise ConfigError(
                f"format.encoding is {self.encoding!r}, which Python does not know; use one of its "
                "standard encodings, such as utf-8 or latin-1."
            ) from error
        if line_end != b"\n":
            raise ConfigError(
                f"format.encoding is {self.encoding!r}, in which a line end is more than one byte; "
                "convert the file to UTF-8 (iconv)."
            )

    @property
    def codec(self) -> str:
        """The encoding by the name that Python gives it: "utf-8" for "UTF8"."""
        return codecs.lookup(self.encoding).name


@dataclass(frozen=True, slots=True)
class TableFile:
    """What is wanted of one file.

    Attributes:
        path: The file.
        columns: Those that are wanted.
        format: How it is written.
        list_columns: Of the wanted ones, those whose values may be lists of texts; they are given as JSON.
        parts: Keys of a JSON object whose values are rows; none where the file is a list of rows.
    """

    path: Path
    columns: Sequence[str]
    format: TableFormat = field(default_factory=TableFormat)
    list_columns: Collection[str] = ()
    parts: tuple[str, ...] = ()


def check_columns(path: Path | str, place: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raises a DataError that names the first wanted column that is not there."""
    for column in wanted:
        if column not in present:
            raise DataError(f"{path}, {place}: no column {column!r} among {list(present)}; name one of these.")
        if present.count(column) > 1:
            raise DataError(f"{path}, {place}: column {column!r} comes more than once; rename all but one of them.")
