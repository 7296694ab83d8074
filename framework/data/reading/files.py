"""Text files: globs, compression by suffix, decoding of lines, and the handling of bad rows."""

import glob
import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from framework.errors import DataError, check_choice

COMPRESSIONS = (".gz", ".zst")
HEAD_BYTES = 256 * 2**10
"""Number of decompressed bytes of a file from which its format is detected."""

_ENDLESS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _ignore(num_bytes: int) -> None:
    del num_bytes


@dataclass
class Reading:
    """Settings and statistics of reading files.

    Attributes:
        on_bad_row: "error" raises an error at the first row that cannot be read; "skip" counts the row and continues.
        advance: Callback that receives the number of bytes read, as stored on disk.
        num_skipped: Number of skipped rows.
        skipped: Error messages of bad rows, at most the first `max_remembered`.
        max_remembered: Largest number of messages kept; None keeps all.
        unit_column: Column of the privacy unit of each row, such as a user; None: units are not read.
        units: Unit of each row, by its file and location.
        conceal: Removes personal data from the messages of bad rows; None: they may quote the rows.
    """

    on_bad_row: Literal["error", "skip"] = "error"
    advance: Callable[[int], None] = _ignore
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)
    max_remembered: int | None = 5
    unit_column: str | None = None
    units: dict[str, str] = field(default_factory=dict)
    conceal: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        check_choice("on_bad_row", self.on_bad_row, ("error", "skip"))

    def keep_unit(self, location: str, values: Mapping[str, Any]) -> None:
        """Stores the unit of a row.

        Args:
            location: File and location of the row.
            values: Values of the row by column.
        """
        if self.unit_column is not None:
            value = values[self.unit_column]
            self.units[location] = "" if value is None else str(value).strip()

    def bad_row(self, error: DataError, num_rows: int = 1) -> None:
        """Raises the error, or counts the rows that are lost because of it."""
        shown = error if self.conceal is None else DataError(self.conceal(str(error)))
        if self.on_bad_row == "error":
            if shown is not error:
                raise shown from None
            raise error
        self.num_skipped += num_rows
        if self.max_remembered is None or len(self.skipped) < self.max_remembered:
            self.skipped.append(str(shown))

    def handling_bad_row(self) -> "_RowHandler":
        """Returns a context manager that reads one row and passes a DataError to `bad_row`."""
        return _RowHandler(self)


class _RowHandler:
    """A class, because a generator function costs more than the reading of a short row."""

    __slots__ = ("_reading",)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, DataError):
            self._reading.bad_row(error)
        return isinstance(error, DataError)


def find_files(patterns: str | Sequence[str], exclude: str | Sequence[str] = ()) -> list[Path]:
    """Expands paths and globs. The matches of each pattern are sorted, and no file is returned twice.

    Raises:
        DataError: A pattern matches no file, or `exclude` matches all files.
    """
    excluded = {path for pattern in _as_list(exclude) for path in glob.glob(pattern, recursive=True)}
    files: dict[str, None] = {}
    for pattern in _as_list(patterns):
        # An existing path is not expanded, so that brackets in a file's name do no harm.
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            check_regular(Path(pattern))
        if not matches and Path(pattern).is_dir():
            raise DataError(
                f"{pattern!r} is a folder, not a file. Give a glob of the files in it, such as '{pattern}/**/*'."
            )
        if not matches:
            raise DataError(f"no file matches {pattern!r}. Give a path or glob of existing files.")
        files.update(dict.fromkeys(match for match in matches if match not in excluded))
    if not files:
        raise DataError(f"`exclude` matches all files that match {patterns!r}. At least one must remain. Shorten it.")
    return [Path(path) for path in files]


def kind_of(path: Path) -> str:
    """Returns the suffix that identifies the format, in lower case and without compression: ".csv" for "a.CSV.gz"."""
    name = Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path
    return name.suffix.lower()


def check_regular(path: Path) -> None:
    """Rejects files that may never end. The caller handles missing files and folders.

    Raises:
        DataError: The path is a pipe, a device or a socket.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return
    if kind in _ENDLESS:
        raise DataError(
            f"{path} is {_ENDLESS[kind]}, not a regular file. Data files are opened more than once and must end. Write "
            "the content to a file and pass that."
        )


def raw_lines(path: Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line with its ending) of a plain, gzip or zstd file. Only a line feed ends a line.

    Raises:
        DataError: The file cannot be opened, is empty, or its compressed stream is damaged.
    """
    number = 0
    with _opened(path, reading.advance, lambda: number) as lines:
        for number, raw in enumerate(lines, start=1):
            yield number, raw
    if number == 0:
        raise DataError(f"{path} is empty. A source needs text. Remove or replace the file.")


def head_of(path: Path) -> bytes:
    """Reads the first bytes of a plain, gzip or zstd file, at most HEAD_BYTES.

    Raises:
        DataError: The file cannot be opened, or its compressed stream is damaged.
    """
    with _opened(path, _ignore, lambda: 0) as file:
        return file.read(HEAD_BYTES)


@contextmanager
def _opened(
    path: Path, advance: Callable[[int], None], num_lines: Callable[[], int]
) -> Iterator[BinaryIO | io.BufferedReader]:
    """Opens a file for reading; errors state the line number that `num_lines` returns."""
    check_regular(path)
    try:
        with _CountedFile(path, advance) as file, _decompressed(path, io.BufferedReader(file)) as content:
            yield content
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowInvalid) as error:
        raise _damaged(path, num_lines(), error) from error
    except OSError as error:
        if error.errno is None:  # pyarrow reports a broken stream this way
            raise _damaged(path, num_lines(), error) from error
        raise DataError(f"{path} cannot be read ({error.strerror}). Correct the path or its permissions.") from error


def decode_line(path: Path, number: int, raw: bytes | bytearray, encoding: str = "utf-8") -> str:
    """Decodes a line, or several lines from line `number` on. A byte order mark before the first line is dropped.

    Raises:
        DataError: The line contains bytes that are invalid in the encoding.
    """
    try:
        return raw.decode("utf-8-sig" if number == 1 and encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]  # without the mark
        line, column = number + before.count(b"\n"), len(before) - before.rfind(b"\n")
        raise DataError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} at position {column} is not "
            f"{encoding.upper()}. The file must be in this encoding. Convert it to UTF-8 (iconv) or leave it out."
        ) from error


class _CountedFile(io.FileIO):
    """File that reports the number of bytes read."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, buffer: bytearray | memoryview, /) -> int | None:  # type: ignore[override]
        count = super().readinto(buffer)
        self._advance(count or 0)
        return count


def _decompressed(path: Path, file: io.BufferedReader) -> BinaryIO | io.BufferedReader:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file), "zstd"))
    return file


def _damaged(path: Path, number: int, error: BaseException) -> DataError:
    return DataError(
        f"{path} is damaged after line {number} ({error}). The rest of the file cannot be read. Fetch or compress the "
        "file again."
    )


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
