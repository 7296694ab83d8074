"""Reads one folder per class, the layout of IMDB and of ImageNet: the folder is the label of its texts or pictures."""

import logging
from collections.abc import Iterator
from pathlib import Path

from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.table_format import Row, TableFile, check_columns
from framework.errors import DataError

logger = logging.getLogger(__name__)

COLUMNS = ("text", "label", "file", "path")


def read_folder(table: TableFile, reading: Reading) -> Iterator[Row]:
    """Yields one row per file, with its folder as `label`, its name as `file` and `label/file` as `path`.

    The content of the file (plain, gzip or zstd) is its `text`, and is read only if this column is requested. Hidden
    files, and files outside of the class folders, are not read.

    Raises:
        DataError: There are no sub-folders, or one contains a folder; a requested column does not exist; a file is
            empty, damaged or not in the encoding and `reading` does not skip such files.
    """
    path = table.path
    check_columns(path, "a folder per class", [*table.columns, *table.as_is], COLUMNS)
    folders = sorted(entry for entry in _visible(path) if entry.is_dir())
    if not folders:
        raise DataError(
            f"{path} is a folder without sub-folders. A folder of data has one sub-folder per class, which holds a "
            "file per text. Give such a folder, or a file of rows."
        )
    num_others = sum(not entry.is_dir() for entry in _visible(path))
    if num_others:
        logger.warning("%s: %d files outside of the class folders are not read.", path, num_others)
    number = 0
    for folder in folders:
        for file in sorted(_visible(folder)):
            if file.is_dir():
                raise DataError(
                    f"{file} is a folder within the class {folder.name!r}. The folder of a class holds a file per text "
                    f"and no folders. Move its files into {folder}, or name another folder."
                )
            number += 1
            with reading.handling_bad_row():
                values = {"label": folder.name, "file": file.name, "path": f"{folder.name}/{file.name}"}
                if "text" in (*table.columns, *table.as_is):
                    values["text"] = _text_of(file, reading, table.format.codec)
                texts, kept = ({column: values[column] for column in some} for some in (table.columns, table.as_is))
                yield Row(number, None, texts, f"{folder.name}/{file.name}", kept)


def _visible(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}). Correct the path or its permissions.") from error


def _text_of(file: Path, reading: Reading, encoding: str) -> str:
    raw = b"".join(line for _, line in raw_lines(file, reading))
    return decode_line(file, 1, raw, encoding).strip()
