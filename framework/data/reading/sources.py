"""Sources of documents: plain text, tables, and datasets of the `datasets` library.

A source is a small dataclass whose `read` yields texts. Every fault of a file raises a DataError that names the file
and the line or row. `framework.data.reading.documents` cleans texts, removes duplicates and splits sentences.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pyarrow as pa

from framework.data.reading.files import Reading, decode_line, find_files, raw_lines
from framework.data.reading.rows import Row, check_end_of_stream, read_rows, rows_of_batches
from framework.data.reading.table_format import TableFormat, check_encoding
from framework.errors import DataError, check_choice

if TYPE_CHECKING:
    from datasets import Dataset


class Source(Protocol):
    """Source of documents."""

    def paths(self) -> list[Path]:
        """Returns the files in reading order."""

    def read(self, reading: Reading) -> Iterator[str]:
        """Yields the texts of the documents, including empty ones."""


@dataclass(frozen=True)
class TextFiles:
    """Plain text files, which may be compressed with gzip or zstd (detected by the suffix).

    Attributes:
        files: Path or glob (`**` descends into folders), or several.
        documents: Division into documents: "file" makes each file a document, "blank_lines" splits at blank lines.
        exclude: Paths or globs of files to omit from the matches of `files`.
        encoding: Encoding of the files (`framework.data.reading.table_format.TableFormat`).

    Raises:
        ConfigError: `documents` or the encoding is not known.
    """

    files: str | Sequence[str]
    documents: Literal["file", "blank_lines"] = "file"
    exclude: Sequence[str] = ()
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        check_encoding("encoding", self.encoding)
        check_choice("documents", self.documents, ("file", "blank_lines"))

    def paths(self) -> list[Path]:
        """Returns the matching files, sorted within each pattern.

        Raises:
            DataError: A pattern matches no file.
        """
        return find_files(self.files, self.exclude)

    def read(self, reading: Reading) -> Iterator[str]:
        """Yields the documents.

        Raises:
            DataError: A file is missing, empty, damaged, or not in the encoding and `reading` does not skip such
                documents.
        """
        encoding = check_encoding("encoding", self.encoding)
        for path in self.paths():
            for number, raw in self._documents(path, reading):
                with reading.handling_bad_row():
                    yield decode_line(path, number, raw, encoding)

    def _documents(self, path: Path, reading: Reading) -> Iterator[tuple[int, bytearray]]:
        """Yields (number of the first line, all lines) of each document."""
        first, document = 1, bytearray()
        for number, raw in raw_lines(path, reading):
            if self.documents == "file" or raw.strip():
                first = first if document else number
                document += raw
            elif document:
                yield first, document
                document = bytearray()
        if document:
            yield first, document


@dataclass(frozen=True)
class TableFiles:
    """Rows of CSV, TSV, JSONL, Parquet or Arrow files (`framework.data.reading.rows`); each row's text is a document.

    Attributes:
        files: Path or glob, or several.
        text_column: Column (in JSONL a key) that holds the text.
        where: Required values {column: value}; rows without all of them are skipped.
        format: Format of the files; None uses the defaults of TableFormat.
    """

    files: str | Sequence[str]
    text_column: str = "text"
    where: Mapping[str, object] | None = None
    format: TableFormat | None = None

    def paths(self) -> list[Path]:
        """Returns the matching files, sorted within each pattern.

        Raises:
            DataError: A pattern matches no file.
        """
        return find_files(self.files)

    def read(self, reading: Reading) -> Iterator[str]:
        """Yields the texts of the rows.

        Raises:
            DataError: A file is missing, empty, damaged or not UTF-8, a column is missing, a row is broken, or no row
                matches `where`.
        """
        for path in self.paths():
            rows = read_rows(path, needed_columns(self.text_column, self.where), reading, self.format)
            yield from texts_of_rows(str(path), rows, self.text_column, self.where)


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a dataset of the `datasets` library; each row's text is a document.

    Attributes:
        name: Name on the Hugging Face hub, or a folder that `save_to_disk` wrote.
        text_column: Column that holds the text.
        split: Split of the dataset; ignored for a saved folder without splits.
        config: Configuration of a dataset on the hub.
        revision: Commit, branch or tag of a dataset on the hub.
        where: Required values {column: value}; rows without all of them are skipped.
    """

    name: str
    text_column: str = "text"
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    where: Mapping[str, object] | None = None

    def paths(self) -> list[Path]:
        """Returns the Arrow files of the dataset; a dataset on the hub is fetched first.

        Raises:
            DataError: The dataset or split does not exist.
        """
        return [Path(file["filename"]) for file in self._open().cache_files]

    def read(self, reading: Reading) -> Iterator[str]:
        """Yields the texts of the rows.

        Raises:
            DataError: The dataset, split or column does not exist, a file is damaged, no row matches `where`, or a text
                is missing or not UTF-8 and `reading` does not skip such rows.
        """
        dataset, columns = self._open(), needed_columns(self.text_column, self.where)
        for file in dataset.cache_files:
            check_end_of_stream(Path(file["filename"]))
        for column in columns:
            if column not in dataset.column_names:
                raise DataError(f"{self.name}: no column {column!r} among {dataset.column_names}. Name one of these.")
        batches = self._batches(dataset.select_columns(columns).with_format("arrow"), reading)
        rows = rows_of_batches(self.name, batches, columns, reading)
        yield from texts_of_rows(self.name, rows, self.text_column, self.where)

    def _batches(self, dataset: "Dataset", reading: Reading) -> Iterator[pa.RecordBatch]:
        size, done = sum(path.stat().st_size for path in self.paths()), 0
        for table in dataset.iter(batch_size=1024):
            yield from table.to_batches()
            reading.advance(size * (done + len(table)) // len(dataset) - size * done // len(dataset))
            done += len(table)

    def _open(self) -> "Dataset":
        from datasets import DatasetDict, load_dataset, load_from_disk

        try:
            if Path(self.name).is_dir():
                dataset = load_from_disk(self.name)
            else:
                dataset = load_dataset(self.name, self.config, revision=self.revision)
        except (OSError, ValueError) as error:  # raised by `datasets` for folders and names that are no datasets
            raise DataError(
                f"the dataset {self.name!r} cannot be opened ({' '.join(str(error).split())}). Give a name on the hub "
                "that can be reached, or a folder that `save_to_disk` wrote."
            ) from error
        if not isinstance(dataset, DatasetDict):
            return dataset
        if self.split not in dataset:
            raise DataError(f"{self.name}: no split {self.split!r} among {', '.join(dataset)}. Name one of these.")
        return dataset[self.split]


def needed_columns(text_column: str, where: Mapping[str, object] | None) -> list[str]:
    """Returns the columns to read, without repetitions."""
    return list(dict.fromkeys([text_column, *(where or {})]))


def matching_texts(rows: Iterator[Row], text_column: str, where: Mapping[str, object] | None) -> Iterator[str]:
    """Yields the texts of the rows that have all the values of `where`."""
    required = {column: str(value) for column, value in (where or {}).items()}
    return (
        row.values[text_column]
        for row in rows
        if all(row.values[column] == value for column, value in required.items())
    )


def texts_of_rows(
    name: str, rows: Iterator[Row], text_column: str, where: Mapping[str, object] | None
) -> Iterator[str]:
    """Yields the same texts as `matching_texts`, of which there must be at least one.

    Raises:
        DataError: No row of `name` matches `where`.
    """
    is_empty = True
    for text in matching_texts(rows, text_column, where):
        is_empty = False
        yield text
    # Without `where`, only bad rows can be missing, which are counted already.
    if where and is_empty:
        required = {column: str(value) for column, value in (where or {}).items()}
        raise DataError(f"{name} has no row where {required}. At least one row must match. Correct or omit `where`.")
