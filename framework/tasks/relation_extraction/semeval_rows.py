"""Rows of SemEval-2010 task 8: a number, a tab and a sentence in quotes; its relation; perhaps a comment; a blank line.

Source: the README of its data. Hendrickx et al. 2010, "SemEval-2010 Task 8: Multi-Way Classification of Semantic
Relations Between Pairs of Nominals".
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.table_format import Row
from framework.errors import DataError

_SENTENCE = re.compile(r"\d+\t(.*)")
_COMMENT = "Comment:"


def is_semeval(lines: Sequence[str]) -> bool:
    """Returns True if a file begins with a number, a tab and a sentence, followed by a line without a tab.

    Args:
        lines: First non-blank lines of the file.
    """
    return len(lines) < 2 or (_SENTENCE.fullmatch(lines[0]) is not None and "\t" not in lines[1])


def read_semeval(path: Path, reading: Reading, encoding: str = "utf-8") -> Iterator[Row]:
    """Streams rows with `text`, the sentence without its quotes, and `label`.

    Args:
        path: The file.
        reading: Handling of broken rows.
        encoding: Encoding of the file.

    Raises:
        DataError: The file cannot be read, or a block of lines is no row and `reading` does not skip those.
    """
    for number, block in enumerate(_blocks(path, reading), start=1):
        try:
            values = _values(path, block, encoding)
        except DataError as error:
            reading.bad_row(error)
        else:
            yield Row(number, block[-1][0], values)


def _blocks(path: Path, reading: Reading) -> Iterator[list[tuple[int, bytes]]]:
    """Line numbers and lines between blank lines."""
    block: list[tuple[int, bytes]] = []
    for line, raw in raw_lines(path, reading):
        if raw.strip():
            block.append((line, raw))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _values(path: Path, block: Sequence[tuple[int, bytes]], encoding: str) -> dict[str, str]:
    lines = [decode_line(path, number, raw, encoding).strip() for number, raw in block]
    sentence = _SENTENCE.fullmatch(lines[0])
    if sentence is None:
        raise DataError(
            f"{path}, line {block[0][0]}: {lines[0][:60]!r} is not a number, a tab and a sentence, with which a row "
            "begins; correct it, or name the file .jsonl or .csv if it is one."
        )
    if len(lines) < 2 or lines[1].startswith(_COMMENT):
        raise DataError(f"{path}, line {block[0][0]}: no label is below the sentence; add one or remove the row.")
    if len(lines) > 3 or (len(lines) == 3 and not lines[2].startswith(_COMMENT)):
        raise DataError(
            f"{path}, line {block[2][0]}: {lines[2][:60]!r} is neither a comment nor a blank line, which end a row; "
            "put a blank line between rows."
        )
    text = sentence[1].strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return {"text": text, "label": lines[1]}
