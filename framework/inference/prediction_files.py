"""Writes one prediction per row: JSONL, CSV and TSV, and CoNLL columns for tasks that tag words."""

import codecs
import csv
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.config.outputs import WriteText
from framework.errors import ConfigError, DataError

PredictedRow = Mapping[str, Any]
Writer = Callable[[Sequence[PredictedRow]], Iterator[str]]

_OTHER_SUFFIXES = (".json", ".arrow", ".feather", ".xlsx", ".xls", ".gz", ".zst", ".zip", ".bz2", ".xz")


def check_suffix(output: str | None) -> None:
    """Checks that the suffix of an output names a supported format.

    Raises:
        ConfigError: The format is not supported.
    """
    suffix = Path(output or "").suffix.lower()
    if suffix in _OTHER_SUFFIXES:
        raise ConfigError(
            f"output={output} has the suffix {suffix}, which is not supported. Predictions are written as JSONL, CSV "
            "or TSV, and embeddings also as .npy or .parquet. Choose a name that ends in .jsonl, .csv or .tsv."
        )


def find_writer(output: str | None, text_format: str | None) -> Writer:
    """Returns the writer for the suffix of an output. Files with unknown suffixes are written as JSONL.

    Args:
        output: Path; None: standard output, written as JSONL.
        text_format: Value of `Task.text_format`.

    Raises:
        ConfigError: The output is a CoNLL file, and the task does not tag words.
    """
    if output is None:
        encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
        return json_lines if encoding == "utf-8" else _ascii_json_lines
    suffix = Path(output).suffix.lower()
    if suffix == ".conll" and text_format != "conll":
        raise ConfigError(
            f"output={output} is a CoNLL file, but this task does not tag words. Choose a name that ends in .jsonl, "
            ".csv or .tsv."
        )
    return _WRITERS.get(suffix, json_lines)


def json_lines(rows: Sequence[PredictedRow]) -> Iterator[str]:
    """Yields one JSON object per line."""
    for row in rows:
        line = json.dumps(row, ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # an unpaired surrogate, copied from the input
            line = json.dumps(row)
        yield line + "\n"


def _ascii_json_lines(rows: Sequence[PredictedRow]) -> Iterator[str]:
    """Yields one JSON object per line for streams that accept only ASCII."""
    return (json.dumps(row) + "\n" for row in rows)


def _delimited(delimiter: str) -> Writer:
    def write(rows: Sequence[PredictedRow]) -> Iterator[str]:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        yield _line([*columns], delimiter)
        for row in rows:
            yield _line([cell_text(row.get(name)) or "" for name in columns], delimiter)

    return write


def _line(cells: list[str], delimiter: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def cell_text(value: Any) -> str | None:
    """Formats a value for a cell: text and None unchanged, everything else as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _conll(rows: Sequence[PredictedRow]) -> Iterator[str]:
    """Yields one word and tag per line and a blank line after each row; rows without a prediction become comments."""
    for row in rows:
        if row.get("tags") is None:
            yield f"# {row.get('error', 'no prediction')}\n"
        else:
            yield from (
                f"{' '.join(word.split())}\t{tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True)
            )
        yield "\n"


_WRITERS: dict[str, Writer] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".conll": _conll,
}


def with_columns(rows: Sequence[PredictedRow], columns: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Returns rows with the chosen columns in their order; all columns if `columns` is None.

    Args:
        rows: Rows.
        columns: Key of each column, by its name in the output.

    Raises:
        ConfigError: A key is not in the rows.
    """
    if columns is None:
        return [dict(row) for row in rows]
    known = dict.fromkeys(key for row in rows for key in row)
    for name, key in columns.items():
        if rows and key not in known:
            raise ConfigError(
                f"output_columns.{name} is {key}, which is none of {', '.join(known)}. It must be a predicted key or a "
                "column of keep_columns. Name one of these."
            )
    return [{name: row.get(key) for name, key in columns.items()} for row in rows]


def write_rows(write: WriteText, writer: Writer, rows: Sequence[PredictedRow]) -> None:
    """Writes rows to an opened output.

    Args:
        write: Function from `framework.config.outputs.open_output`.
        writer: Function from `find_writer`.
        rows: Rows.

    Raises:
        DataError: Writing failed. The rows are saved in the temporary folder of the system if possible, and the error
            names that file.
    """
    try:
        write(writer(rows))
    except DataError as error:
        raise _rescued(error, rows) from error


def _rescued(error: DataError, rows: Sequence[PredictedRow]) -> DataError:
    """Saves predictions that could not be written to their output in the temporary folder of the system, if possible.

    Returns:
        The error, extended by the path of that file.
    """
    if isinstance(error.__cause__, BrokenPipeError):
        return error  # the reader needs no more rows
    try:
        descriptor, name = tempfile.mkstemp(prefix="cloze-predictions-", suffix=".jsonl")
    except OSError:
        return error
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.writelines(json_lines(rows))
    except OSError:
        Path(name).unlink(missing_ok=True)
        return error
    return DataError(f"{error} The {len(rows)} rows are in {name}.")
