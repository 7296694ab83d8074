"""Groups of the rows of a split, from a column of their file or from terms in their texts."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from framework.audits.terms import GroupTerms
from framework.data.examples.splits import Record
from framework.data.planning.plan import SequenceSource
from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError, counted

_ROW = re.compile(r", (row \d+( \(line \d+\))?|file [^,]*)$")
"""End of the location of a row of a table (`Row.location`)."""


class Records(Protocol):
    """Source of a split that keeps its rows."""

    records: Sequence[Record]


@dataclass(frozen=True)
class Grouping:
    """Groups of one column or of one file of terms.

    Attributes:
        name: Name of the column, or "terms".
        members: (rows,) int64 ascending indices of the rows of each group that is large enough, by name of the group.
        too_small: Number of rows of each other group.
        num_outside: Number of rows that belong to no group.
    """

    name: str
    members: Mapping[str, np.ndarray]
    too_small: Mapping[str, int]
    num_outside: int


def split_records(source: SequenceSource, split: str) -> Sequence[Record]:
    """Returns the rows of a split. Adjacent items with the same `row`, such as windows of a long text, are one row.

    Raises:
        ConfigError: The split does not keep its rows.
    """
    records: Sequence[Any] = getattr(source, "records", ())
    if len(records) != len(source) or not all(hasattr(records[0], name) for name in ("location", "identity", "answer")):
        raise ConfigError(
            f"the split {split} keeps no labelled rows, one for each sequence. The audit groups compares such rows. "
            "Choose split=validation or split=test of a run of classification, regression or relation extraction."
        )
    rows = [getattr(record, "row", item) for item, record in enumerate(records)]
    return [record for record, row, previous in zip(records, rows, [None, *rows[:-1]], strict=True) if row != previous]


def column_values(
    records: Sequence[Record], columns: Sequence[str], form: TableFormat | None, text_columns: Sequence[str] = ()
) -> list[list[str | None]]:
    """Reads columns of the files that rows come from.

    Args:
        records: Rows, whose location names their file.
        columns: Columns to read.
        form: Format of the files; None: the defaults.
        text_columns: Columns of the texts or of lists of texts, by which a header is detected.

    Returns:
        For each column, the value of each row as text; None for an empty value.

    Raises:
        DataError: A file cannot be read or lacks a column, or has no rows with columns (CoNLL files, SQuAD's JSON).
    """
    other = next((each.location for each in records if not _ROW.search(each.location)), None)
    if other is not None:
        raise DataError(
            f"{other} is not a row with columns. Groups are read from columns of tables and of JSON with an object for "
            "each row. Convert the file, or give audit.groups.terms."
        )
    paths = dict.fromkeys(record.location.rpartition(", ")[0] for record in records)
    kept = {
        f"{path}, {row.location}": row.kept
        for path in paths
        for row in read_rows(Path(path), text_columns, Reading("skip"), form, text_columns, columns)
    }
    missing = next((record.location for record in records if record.location not in kept), None)
    if missing is not None:
        raise DataError(
            f"{missing} is not in the file any more. Groups are read from the file of the split. Restore the file."
        )
    return [[_text(kept[record.location][column]) for record in records] for column in columns]


def _text(value: Any) -> str | None:
    return None if value is None or str(value).strip() == "" else str(value).strip()


def read_terms(path: str) -> GroupTerms:
    """Reads a YAML file of terms by group.

    Raises:
        ConfigError: The file cannot be read, is no mapping of groups to lists of words, or has terms that cannot be
            compared, see `GroupTerms`.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"audit.groups.terms={path} cannot be read ({reason}). It must be a YAML file. Correct it."
        ) from error
    is_terms = isinstance(content, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in content.values()
    )
    if not is_terms:
        raise ConfigError(
            f"audit.groups.terms={path} is no mapping of groups to lists of words. Write, for example, "
            "`female: [she, her]`, and quote words that YAML reads as other values, such as 'no'."
        )
    return GroupTerms({str(name): words for name, words in content.items()}, path)


def term_values(texts: Iterable[str], terms: GroupTerms) -> tuple[list[str | None], int]:
    """Returns the group of each text, None without a single group, and the number of texts with terms of several."""
    found = [terms.groups_of(text) for text in texts]
    return [groups[0] if len(groups) == 1 else None for groups in found], sum(len(groups) > 1 for groups in found)


def build_grouping(name: str, values: Sequence[str | None], min_rows: int) -> Grouping:
    """Divides rows by their values.

    Args:
        name: Name of the grouping.
        values: Group of each row; None: no group.
        min_rows: Smallest number of rows of a group for which numbers are reported.

    Raises:
        DataError: Fewer than two groups are large enough.
    """
    counts = Counter(value for value in values if value is not None)
    large = sorted(group for group, count in counts.items() if count >= min_rows)
    if len(large) < 2:
        sizes = ", ".join(f"{group} {count}" for group, count in counts.most_common(8)) or "none"
        raise DataError(
            f"{name} has {counted(len(large), 'group')} with at least {min_rows} rows (rows of the groups: {sizes}). A "
            "comparison needs at least 2. Give a larger file, or lower audit.groups.min_rows."
        )
    array = np.array(["" if value is None else value for value in values], dtype=object)
    outside = np.array([value is None for value in values])
    return Grouping(
        name,
        {group: np.flatnonzero((array == group) & ~outside) for group in large},
        {group: count for group, count in sorted(counts.items()) if count < min_rows},
        int(outside.sum()),
    )
