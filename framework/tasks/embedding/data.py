"""Texts of which is known what they are similar to: pairs, scored pairs, or labelled texts; checked and split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import number
from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.files import parse_json

PairKind = Literal["matches", "scored", "labelled"]
_NUMBER = number()


@dataclass(frozen=True, slots=True)
class TextGroup:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        place: File, row and line, for messages.
        texts: The text; then, but for labelled texts, the one that it is paired with; then its hard negatives.
        answer: The score, the label, or None.
    """

    place: str
    texts: tuple[str, ...]
    answer: float | str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """The texts."""
        return tuple(map(same_text, self.texts))


@dataclass(frozen=True)
class TextPairData(SplitFiles):
    """One of three kinds of rows, of files that `framework.data.reading.rows` reads.

    - "matches": a text and one that belongs to it (a question and its answer), perhaps with hard negatives: texts that
      look as if they did, but do not.
    - "scored": two texts, and a number that says how similar they are.
    - "labelled": a text and its label; texts of one label belong together.

    Rows of the same first text fall into one split.

    Attributes:
        text_column: Column, in JSONL key, of the text.
        pair_column: Column of the second text; None: texts are labelled.
        score_column: Column of the number; None: pairs are matches.
        label_column: Column of the label; None: texts come in pairs.
        negative_columns: Columns of hard negatives. A cell that is a JSON list holds several, an empty one none.
        format: Format of the files; None: the defaults of TableFormat.
        on_bad_row: What is done about a row that is broken, or in which a text, the label or the number is missing:
            "error", or "skip", which counts it.

    Raises:
        ConfigError: The columns are not those of one kind.
    """

    text_column: str = "text"
    pair_column: str | None = "pair"
    score_column: str | None = None
    label_column: str | None = None
    negative_columns: list[str] = field(default_factory=list)
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.pair_column is None) == (self.label_column is None):
            raise ConfigError(
                f"data.pair_column is {self.pair_column} and label_column is {self.label_column}, but exactly "
                "one of them "
                "is needed: texts have a second text or a label; set the other one to null."
            )
        if self.label_column is not None and self.score_column is not None:
            raise ConfigError(
                f"data.score_column is {self.score_column}, but a score is one of two texts, and with label_column="
                f"{self.label_column} there is one; set one of the two to null."
            )
        if self.negative_columns and self.kind != "matches":
            raise ConfigError(
                f"data.negative_columns is {self.negative_columns}, but rows are {self.kind}, and only pairs without a "
                "score have hard negatives; leave it empty."
            )

    @property
    def kind(self) -> PairKind:
        """Which of the three."""
        if self.label_column is not None:
            return "labelled"
        return "matches" if self.score_column is None else "scored"

    def group(self, record: R) -> tuple[str, ...]:
        """The first text."""
        return record.identity[:1]

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the column of the text."""
        return {"text": self.text_column}

    def load(self) -> ReadSplits[TextGroup]:
        """Reads, checks and splits the rows.

        Raises:
            DataError: A file is missing, empty, in another encoding or broken, or lacks a column; a row is bad and not
                to be skipped; a split would be empty; all labels or scores of `train` are the same.
        """
        pairs = self.split(self.read_files(self._read, self.on_bad_row))
        train = pairs.splits["train"]
        if self.kind != "matches" and all(row.answer == train[0].answer for row in train):
            what = "label" if self.kind == "labelled" else "score"
            raise DataError(
                f"{train[0].place}: all {len(train)} training rows have the {what} {train[0].answer!r}, but there must "
                f"be at least 2 to tell apart; correct `{what}_column`, or give more rows."
            )
        return pairs

    def _read(self, path: Path, reading: Reading) -> list[TextGroup]:
        needed = [self.text_column, self.pair_column, self.score_column, self.label_column]
        columns = [column for column in needed if column is not None]
        rows = []
        for row in read_rows(path, [*columns, *self.negative_columns], reading, self.format, self.negative_columns):
            try:
                rows.append(self._group(f"{path}, {row.place}", row.values, columns))
            except DataError as error:
                reading.bad_row(error)
        return rows

    def _group(self, place: str, values: Mapping[str, str], needed: list[str]) -> TextGroup:
        for column in needed:
            if not values[column].strip():
                raise DataError(f"{place}: {column!r} is empty, each row needs one; fill in or remove the row.")
        texts = [values[column] for column in (self.text_column, self.pair_column) if column is not None]
        for column in self.negative_columns:
            texts += _texts_of(values[column])
        if self.label_column is not None:
            return TextGroup(place, tuple(texts), values[self.label_column].strip())
        if self.score_column is None:
            return TextGroup(place, tuple(texts))
        cell = values[self.score_column].strip()
        try:
            return TextGroup(place, tuple(texts), _NUMBER.read(cell))
        except ValueError as error:
            raise DataError(
                f"{place}: {self.score_column!r} is {cell!r}, it {error}; correct or remove the row."
            ) from error


def _texts_of(cell: str) -> list[str]:
    """The texts of a cell; a text may begin with a bracket without being a list."""
    texts = [cell]
    if cell.lstrip().startswith("["):
        try:
            found = parse_json(cell)
        except ValueError:
            found = None
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            texts = found
    return [text for text in texts if text.strip()]
