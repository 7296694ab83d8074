"""Detects whether the first row of a table contains the names of its columns."""

import re
import statistics
from collections.abc import Sequence

from framework.data.reading.table_format import TableFormat
from framework.errors import DataError

_SAMPLE = 200
_FEWEST_ROWS = 8
_LONGEST_NAME = 30
# A letter, then at most three words.
_NAME = re.compile(r"[^\W\d_][\w.\-/#]*(?: [\w.\-/#()]+){0,2}")
_COMMON_NAMES = frozenset(
    re.split(
        r"\s+",
        "answer body category choices class comment content context description document emotion gold gold_label "
        "headline hypothesis id idx index intent item label labels message polarity post premise query question "
        "rating relation response review score sentence sentence1 sentence2 sentiment similarity source summary tag "
        "target text text1 text2 text_a text_b time timestamp title topic tweet user utterance "
        "文本 内容 评论 标题 句子 标签 类别 分类 情感 问题 答案 评分 得分",
    )
)
_NO_VALUE = {"nan", "null", "none", "na", "n/a"}


def has_header(
    location: str, table_format: TableFormat, requested: Sequence[str], rows: Sequence[Sequence[str]]
) -> bool:
    """Returns True if the first row contains the column names.

    Args:
        location: File and line of the first row, for messages.
        table_format: Table format; without `columns` there must be a header.
        requested: Names of the columns to read.
        rows: First rows of the file, at least one.

    Raises:
        DataError: The file is read without a header, but its first row looks like one.
    """
    names = table_format.columns
    if table_format.header is not None or names is None:
        return table_format.header is not False
    first = [cell.strip() for cell in rows[0]]
    if set(requested) <= set(first):
        return True
    indices = [names.index(column) for column in requested if column in names]
    reason = _sign_of_header(first, [row for row in rows[1:_SAMPLE] if len(row) == len(first)], names, indices)
    if reason is None:
        return False
    raise DataError(
        f"{location}: {first!r:.120} looks like a header, because {reason}, but not all of the columns "
        f"{list(requested)} are in it. The file is read without a header, with the names {names}. Set the column names "
        "of the file (text_column, label_column, ...), rename them in the file, or set format.header=false if this is "
        "a row."
    )


def _sign_of_header(
    first: Sequence[str], others: Sequence[Sequence[str]], names: Sequence[str], indices: Sequence[int]
) -> str | None:
    """Returns the reason why the first row looks like a header; None if it does not."""
    if len(first) != len(names):
        is_of_names = all(map(_is_name, first)) and not _COMMON_NAMES.isdisjoint(map(str.casefold, first))
        return f"it has {len(first)} names and format.columns has {len(names)}" if is_of_names else None
    for index in indices:
        if first[index].casefold() == names[index].casefold():
            return f"{first[index]!r} is the name of its column"
    if indices and all(first[index].casefold() in _COMMON_NAMES for index in indices):
        return "its cells are common names of columns"
    for index in indices:
        values = [row[index].strip() for row in others]
        if len(values) > 1 and _is_name(first[index]) and None not in map(plain_float, values):
            return f"{first[index]!r} is above numbers"
    if len(others) < _FEWEST_ROWS or not all(_is_name(first[index]) for index in indices):
        return None
    columns = [[row[index].strip() for row in others] for index in indices]
    has_few_values = [len(set(values)) <= len(values) / 3 for values in columns]
    for index, values, is_label in zip(indices, columns, has_few_values, strict=True):
        if is_label and first[index] not in values and _is_short(first, columns, indices, has_few_values):
            return f"{first[index]!r} is none of the {len(set(values))} values below it"
    return None


def _is_short(
    first: Sequence[str], columns: Sequence[Sequence[str]], indices: Sequence[int], has_few_values: Sequence[bool]
) -> bool:
    """Returns True if each cell above texts is at most half as long as the median text."""
    texts = [(index, column) for index, column, few in zip(indices, columns, has_few_values, strict=True) if not few]
    return all(2 * len(first[index]) <= statistics.median(map(len, column)) for index, column in texts)


def _is_name(cell: str) -> bool:
    return len(cell) <= _LONGEST_NAME and cell.casefold() not in _NO_VALUE and _NAME.fullmatch(cell) is not None


def plain_float(cell: str) -> float | None:
    """Parses a number; returns None for other cells. Python's `float` would parse "1_5" as 15."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
