"""Reads and splits queries with their candidate documents, whose rows have one of three forms."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import require_text
from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.reading.files import Reading
from framework.data.reading.rows import Row, read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.tasks.reranking.candidates import (
    CandidateList,
    check_documents,
    items_of,
    numbers_of,
    shortened,
    texts_of,
    with_relevance,
)


@dataclass(frozen=True)
class CandidateData(SplitFiles):
    """Queries with candidates, from files that `framework.data.reading.rows` reads. Rows have one of three forms.

    - positives and negatives: columns of relevant documents (relevance 1) and of irrelevant ones (0).
    - lists: one column with a list of documents, and one with the list of their labels.
    - pairs: one document and its label per row. The rows of a query form one list, wherever they are in the file.

    Lists and pairs are told apart by their cells. All rows with the same query fall into one split.

    Attributes:
        query_column: Column (JSONL: key) of the query.
        positive_columns: Columns of relevant documents. A cell holds a text or a JSON list of texts, or is empty.
        negative_columns: Columns of irrelevant documents, with cells as those of `positive_columns`.
        document_column: Column of a document or of a list of documents; it replaces the positives and negatives.
        label_column: Column of the relevance of `document_column`: numbers, of which 0 means irrelevant and a larger
            one more relevant. None: the document with the highest teacher score is the relevant one.
        teacher_column: Column of the teacher's scores, one for each document in the order of the documents (positives
            first). None: there is no teacher.
        format: Format of the files; None: the defaults of TableFormat.
        on_bad_row: Handling of a row that is broken, lacks a text, has equal documents, another number of labels or
            scores than documents, or no relevant document: "error", or "skip", which counts the row.

    Raises:
        ConfigError: The columns match none of the three forms.
    """

    query_column: str = "query"
    positive_columns: list[str] = field(default_factory=lambda: ["positive"])
    negative_columns: list[str] = field(default_factory=lambda: ["negatives"])
    document_column: str | None = None
    label_column: str | None = None
    teacher_column: str | None = None
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.document_column is None and self.label_column is not None:
            raise ConfigError(
                f"data.label_column is {self.label_column}, but data.document_column is null. Labels belong to the "
                "documents of one column. Set data.document_column, or data.label_column=null."
            )
        if self.document_column is None and not self.positive_columns:
            raise ConfigError(
                "data.positive_columns is empty, and data.document_column is null. Candidates need a column of "
                "relevant documents or of all documents. Set one of the two."
            )
        if self.document_column is not None and self.label_column is None and self.teacher_column is None:
            raise ConfigError(
                f"data.document_column is {self.document_column}, but label_column and teacher_column are null. "
                "Documents need labels or the scores of a teacher. Set data.label_column or data.teacher_column."
            )

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the normalized query."""
        return record.identity[:1]

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the column of the query and, if there is one, that of all documents."""
        documents = {} if self.document_column is None else {"documents": self.document_column}
        return {"query": self.query_column, **documents}

    def load(self) -> ReadSplits[CandidateList]:
        """Reads, checks and splits the lists.

        Raises:
            DataError: A file is missing, empty or damaged; a bad row may not be skipped; a split has no rows left.
        """
        return self.split(self.read_files(self._read, self.on_bad_row))

    def _read(self, path: Path, reading: Reading) -> Iterable[CandidateList]:
        texts = [*self.positive_columns, *self.negative_columns]
        if self.document_column is not None:
            texts = [self.document_column]
        lists = [*texts, *(each for each in (self.label_column, self.teacher_column) if each is not None)]
        rows: list[CandidateList] = []
        pairs: dict[str, list[tuple[int, CandidateList]]] = {}
        for row in read_rows(path, [self.query_column, *lists], reading, self.format, lists):
            with reading.handling_bad_row():
                each, is_pair = self._parse(f"{path}, {row.location}", row)
                if is_pair:
                    pairs.setdefault(same_text(each.query), []).append((len(rows), each))
                rows.append(each)
        if not pairs:
            return rows
        return _grouped(rows, pairs, reading)

    def _parse(self, location: str, row: Row) -> tuple[CandidateList, bool]:
        """Returns the list of a row, and True if the row is a pair, whose query may have further rows."""
        query = require_text(location, self.query_column, row.values[self.query_column])
        relevance: tuple[float, ...] | None = None
        is_pair = False
        if self.document_column is None:
            parts = [
                [text for name in names for text in texts_of(location, name, row.values[name])]
                for names in (self.positive_columns, self.negative_columns)
            ]
            documents = parts[0] + parts[1]
            relevance = (1.0,) * len(parts[0]) + (0.0,) * len(parts[1])
        else:
            cell = row.values[self.document_column]
            is_pair = items_of(cell) is None
            documents = texts_of(location, self.document_column, cell)
        if not documents:
            raise DataError(f"{location}: the row has no document. Each row needs one. Complete or remove the row.")
        texts = check_documents(location, documents)
        if self.document_column is not None and self.label_column is not None:
            relevance = numbers_of(location, self.label_column, row.values[self.label_column], len(texts))
            if min(relevance) < 0:
                raise DataError(
                    f"{location}: {self.label_column!r} has {min(relevance):g}. Relevance is 0 or larger. Correct or "
                    "remove the row."
                )
        teacher = None
        if self.teacher_column is not None:
            teacher = numbers_of(location, self.teacher_column, row.values[self.teacher_column], len(texts))
        whole = CandidateList(location, query, texts, relevance, teacher)
        return (whole, True) if is_pair else (with_relevance(whole), False)


def _grouped(
    rows: Sequence[CandidateList], pairs: dict[str, list[tuple[int, CandidateList]]], reading: Reading
) -> list[CandidateList]:
    """Replaces the first pair of each query by the list of all its pairs, and drops the others."""
    firsts = {own[0][0]: own for own in pairs.values()}
    others = {index for own in pairs.values() for index, _ in own[1:]}
    kept = []
    for index, row in enumerate(rows):
        if index in firsts:
            parts = [part for _, part in firsts[index]]
            try:
                kept.append(with_relevance(_joined(parts, reading)))
            except DataError as error:
                reading.bad_row(error, len(parts))
        elif index not in others:
            kept.append(row)
    return kept


def _joined(parts: Sequence[CandidateList], reading: Reading) -> CandidateList:
    """Joins the pairs of one query.

    Raises:
        DataError: A document occurs twice, or the pairs belong to several privacy units.
    """
    first: dict[str, CandidateList] = {}
    for part in parts:
        other = first.setdefault(same_text(part.documents[0]), part)
        if other is not part:
            raise DataError(
                f"{part.location}: the query {shortened(part.query)} has the document {shortened(part.documents[0])} "
                f"twice, first in {other.location}. The documents of a query must be different. Remove one of the rows."
            )
    if len({reading.units.get(part.location) for part in parts}) > 1:
        raise DataError(
            f"{parts[0].location}: the rows of the query {shortened(parts[0].query)} have different values of "
            f"{reading.unit_column!r}. All rows of a query are one list, which belongs to one privacy unit. Correct "
            "privacy.unit_column."
        )
    relevance = None if parts[0].relevance is None else tuple(value for part in parts for value in part.relevance or ())
    teacher = None
    if parts[0].teacher_scores is not None:
        teacher = tuple(value for part in parts for value in part.teacher_scores or ())
    return replace(
        parts[0],
        documents=tuple(part.documents[0] for part in parts),
        relevance=relevance,
        teacher_scores=teacher,
    )
