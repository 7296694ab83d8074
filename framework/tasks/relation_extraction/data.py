"""Reads, checks and splits texts with two marked entities and the relation between them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import require_text
from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading, head_of, kind_of
from framework.data.reading.rows import Row, read_rows
from framework.data.reading.table_format import TableFile, TableFormat
from framework.data.reading.table_kind import head_lines, json_kind
from framework.errors import ConfigError, DataError
from framework.tasks.relation_extraction.marked_text import MarkedText, mark_entities, read_marked_text
from framework.tasks.relation_extraction.relation_rows import read_relation_json
from framework.tasks.relation_extraction.semeval_rows import is_semeval, read_semeval


@dataclass(frozen=True, slots=True)
class RelationExample:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages.
        text: Text with its two entities.
        label: Relation as in the file, such as `Cause-Effect(e2,e1)`; None if it is to be predicted.
    """

    location: str
    text: MarkedText
    label: str | None

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the text without and with its marks."""
        return same_text(self.text.text), same_text(self.text.marked)

    @property
    def answer(self) -> str | None:
        """Returns the label."""
        return self.label

    def masked(self, masking: TextMasking) -> "RelationExample":
        """Returns the row with a masked text; an entity that overlaps a mask contains all of it.

        Raises:
            DataError: Both entities overlap the same mask.
        """
        masked = masking.mask(self.text.text)
        first, second = (masked.moved(*span) for span in self.text.spans)
        return replace(self, text=mark_entities(self.location, masked.text, first, second))


@dataclass(frozen=True)
class RelationData(SplitFiles):
    """Data whose rows have a text with `<e1>...</e1>` and `<e2>...</e2>` and a label.

    Rows with the same text are in the same split. A file of JSON objects may give tokens and the positions of the
    entities instead (`relation_rows`). A `.txt` file whose first lines have SemEval's format is read by `semeval_rows`.
    Other files are tables (`framework.data.reading.rows`).

    Attributes:
        text_column: Column of the text in tables, or key in JSONL.
        label_column: Column of the label.
        labels: Label set in the order of scores; None: the labels of the files, sorted.
        format: Format of tables; None: the defaults of TableFormat.
        on_bad_row: Handling of a row that is broken, whose entities are marked incorrectly or do not fit into a
            sequence, or whose label is empty or outside the label set: "error", or "skip", which counts the row.
    """

    text_column: str = "text"
    label_column: str = "label"
    labels: list[str] | None = None
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and not 2 <= len(self.labels) == len(set(self.labels)):
            raise ConfigError(
                f"data.labels is {self.labels}. It must contain at least 2 different labels. Correct it, or set null "
                "to use the labels of the data."
            )

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the text."""
        return record.identity[:1]

    def load(self, labels: Sequence[str] | None = None) -> ReadSplits[RelationExample]:
        """Reads, checks and splits the rows.

        Args:
            labels: Label set of an earlier run, which overrides the config and the data.

        Raises:
            DataError: A file is missing, empty or damaged; a bad row may not be skipped; a split has no rows left; all
                training rows have the same label.
        """
        read = self.read_files(self._read, self.on_bad_row)
        names = tuple(labels or self.labels or sorted(read.collect_labels(lambda row: [str(row.label)])))
        for split in read.records:
            read.checked(split, lambda example: _known(example, names))
        relations = self.split(read, names)
        train = relations.splits["train"]
        if not labels and len({example.label for example in train}) < 2:
            raise DataError(
                f"{self.train}: all {len(train)} training rows have the label {train[0].label!r}. Training needs at "
                "least 2 labels. Correct `label_column`, or give more rows."
            )
        return relations

    def _read(self, path: Path, reading: Reading) -> Iterator[RelationExample]:
        form = self.format or TableFormat()
        rows = _marked_rows(TableFile(path, (), form), self.text_column, self.label_column, reading)
        text_column, label_column = "text", "label"
        if rows is None:
            text_column, label_column = self.text_column, self.label_column
            rows = read_rows(path, [text_column, label_column], reading, form)
        for row in rows:
            location = f"{path}, {row.location}"
            with reading.handling_bad_row():
                label = require_text(location, label_column, row.values[label_column]).strip()
                yield RelationExample(location, read_marked_text(location, row.values[text_column]), label)

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the column of the text."""
        return {"text": self.text_column}

    def masked_values(self, values: Mapping[str, str], list_fields: Collection[str]) -> dict[str, str]:
        """Returns the row with a masked text, in which the marks move as in training."""
        assert self.masking is not None, "with_masks must be called before texts are masked"
        try:
            example = RelationExample("row", read_marked_text("row", values["text"]), None).masked(self.masking)
        except DataError:  # the check of the row finds the fault again
            return super().masked_values(values, list_fields)
        return {**values, "text": example.text.marked}

    def rows_to_predict(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row] | None:
        """Streams the rows of JSON and of SemEval's files."""
        return _marked_rows(table, columns.get("text", self.text_column), None, reading)


def _marked_rows(
    table: TableFile, text_column: str, label_column: str | None, reading: Reading
) -> Iterator[Row] | None:
    """Streams rows of `text` and, if there is a label column, `label`; None if the file is a table with columns."""
    path, form = table.path, table.format
    kind = None if form.columns else json_kind(path, form)
    if kind is not None:
        return read_relation_json(replace(table, kind=kind), text_column, label_column, reading)
    labelled = label_column is not None
    may_be_semeval = kind_of(path) == ".txt" and (labelled or not form.columns)
    if may_be_semeval and is_semeval(head_lines(head_of(path), form), labelled):
        return read_semeval(table, labelled, reading)
    return None


def _known(example: RelationExample, labels: Sequence[str]) -> RelationExample:
    if example.label not in labels:
        raise DataError(
            f"{example.location}: the label {example.label!r} is unknown. It must be one of {', '.join(labels)}. "
            "Correct the row, or list all labels in `labels`."
        )
    return example
