"""Reads rows of SemEval-2010 task 8.

A row has a line with a number, a tab and a sentence in quotes, a line with its relation, an optional comment, and a
blank line. Source: the README of its data. Hendrickx et al. 2010, "SemEval-2010 Task 8: Multi-Way Classification of
Semantic Relations Between Pairs of Nominals".
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.table_format import Row, TableFile, check_columns
from framework.errors import DataError

_SENTENCE = re.compile(r"(\d+)\t(.*)")
_NUMBERED = re.compile(rb"\d+\t")
_COMMENT = "Comment:"
_NAMES = ("id", "text", "label")


def is_semeval(lines: Sequence[str], labelled: bool = True) -> bool:
    """Returns True if a file begins with a number, a tab and a sentence, followed by a line without a tab.

    Args:
        lines: First non-blank lines of the file.
        labelled: False: another number, tab and sentence may follow, as in the test file without labels.
    """
    if len(lines) < 2:
        return labelled or any(map(_SENTENCE.fullmatch, lines))
    if _SENTENCE.fullmatch(lines[0]) is None:
        return False
    return "\t" not in lines[1] or (not labelled and _SENTENCE.fullmatch(lines[1]) is not None)


def read_semeval(table: TableFile, labelled: bool, reading: Reading) -> Iterator[Row]:
    """Streams rows with `text`, the sentence without its quotes, and `label`.

    Args:
        table: The file; its `as_is` are names of `id`, `text` and `label`, and a missing label is None.
        labelled: False: rows need no label and get none, and may follow each other without a blank line.
        reading: Handling of broken rows.

    Raises:
        DataError: The file cannot be read, a name in `as_is` is unknown, or a block of lines is not a row and `reading`
            does not skip it.
    """
    check_columns(table.path, "rows of SemEval", table.as_is, _NAMES)
    for number, block in enumerate(_blocks(table.path, reading, labelled), start=1):
        with reading.handling_bad_row():
            fields = _values(table.path, block, table.format.codec, labelled)
            values = {name: fields[name] for name in ("text", "label")[: 1 + labelled]}
            yield Row(number, block[-1][0], values, kept={name: fields.get(name) for name in ("text", *table.as_is)})


def _blocks(path: Path, reading: Reading, labelled: bool) -> Iterator[list[tuple[int, bytes]]]:
    """Yields the numbered lines between blank lines; without labels a new sentence also starts a new block."""
    block: list[tuple[int, bytes]] = []
    for line, raw in raw_lines(path, reading):
        is_next = not labelled and _NUMBERED.match(raw.strip()) is not None
        if block and (is_next or not raw.strip()):
            yield block
            block = []
        if raw.strip():
            block.append((line, raw))
    if block:
        yield block


def _values(path: Path, block: Sequence[tuple[int, bytes]], encoding: str, labelled: bool) -> dict[str, str]:
    lines = [decode_line(path, number, raw, encoding).strip() for number, raw in block]
    sentence = _SENTENCE.fullmatch(lines[0])
    if sentence is None:
        raise DataError(
            f"{path}, line {block[0][0]}: the line is {lines[0][:60]!r}. A row must begin with a number, a tab and a "
            "sentence. Correct it, or rename the file to .jsonl or .csv if it is one."
        )
    if labelled and (len(lines) < 2 or lines[1].startswith(_COMMENT)):
        raise DataError(
            f"{path}, line {block[0][0]}: the sentence has no label. The line after it must contain one. Add it, or "
            "remove the row."
        )
    if len(lines) > 3 or (len(lines) == 3 and not lines[2].startswith(_COMMENT)):
        raise DataError(
            f"{path}, line {block[2][0]}: the line is {lines[2][:60]!r}. A row must end with a comment or a blank "
            "line. Add a blank line between rows."
        )
    text = sentence[2].strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    has_label = len(lines) > 1 and not lines[1].startswith(_COMMENT)
    return {"id": sentence[1], "text": text} | ({"label": lines[1]} if has_label else {})
