"""Reads retrieval data in the layout of BEIR (Thakur et al. 2021, arXiv:2104.08663).

A folder has `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and judgments in `qrels/*.tsv`
(`query-id`, `corpus-id`, `score`). A document is its title, a space and its text. A score above 0 marks a relevant
document; `train`, `validation` and `test` are `train.tsv`, `dev.tsv` and `test.tsv`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.examples.answers import read_cell
from framework.data.examples.splits import same_text
from framework.data.reading.files import Reading
from framework.data.reading.json_rows import JsonValue, check_surrogates, has_text, json_objects
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFile, TableFormat
from framework.errors import DataError

CORPUS_FILE, QUERIES_FILE, QRELS_FOLDER = "corpus.jsonl", "queries.jsonl", "qrels"
_QRELS_STEMS = {"train": "train", "validation": "dev", "test": "test"}
_COLUMNS = ("query-id", "corpus-id", "score")
_DOCUMENTS_ALIKE = "A search cannot tell them apart, and only those in the judgments count as relevant."
_QUERIES_ALIKE = "A search finds the same documents for them, and each is judged by its own documents."


@dataclass(frozen=True, slots=True)
class Judgment:
    """One row of a file of judgments.

    Attributes:
        location: File and row, for messages.
        query: Index of the query.
        document: Index of the document.
        grade: Relevance; 0 and less: the document is not relevant.
    """

    location: str
    query: int
    document: int
    grade: int


@dataclass(frozen=True, eq=False)
class BeirSet:
    """Queries with judgments, and the documents to search.

    Attributes:
        name: Name of the folder.
        qrels: File of the judgments.
        queries: Texts of the judged queries by id, in the order of the judgments.
        documents: Texts of all documents by id, in the order of the corpus.
        judgments: Judgments in the order of the file.
        warnings: Warnings about the documents.
    """

    name: str
    qrels: Path
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    judgments: Sequence[Judgment]
    warnings: Sequence[str]

    def grades(self) -> list[dict[int, int]]:
        """Returns for each query the grades above 0, by the index of the document."""
        grades: list[dict[int, int]] = [{} for _ in self.queries]
        for judgment in self.judgments:
            if judgment.grade > 0:
                grades[judgment.query][judgment.document] = judgment.grade
        return grades


def is_beir(path: str | Path) -> bool:
    """Returns True for a folder in the layout of BEIR, and for a file of judgments in its folder `qrels`."""
    return (_folder_of(Path(path)) / CORPUS_FILE).is_file()


def _folder_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == QRELS_FOLDER and not path.is_dir() else path


def read_beir(path: Path, split: str, reading: Reading, mask: Callable[[str], str] | None = None) -> BeirSet:
    """Reads a folder, or a file of judgments in its folder `qrels`.

    Args:
        path: Folder or file of judgments.
        split: Split whose judgments are read from a folder.
        reading: Handling of bad rows: a document or query that is empty or whose id occurs twice, a judgment of an
            unknown id, and a query without any relevant document.
        mask: Function that masks personal data in a text; None: no masks.

    Raises:
        DataError: A file is missing, damaged or without usable rows, or a row is bad and `reading` does not skip it.
    """
    folder = _folder_of(path)
    qrels = path if folder != path else folder / QRELS_FOLDER / f"{_QRELS_STEMS[split]}.tsv"
    if not qrels.is_file():
        found = sorted(file.name for file in (folder / QRELS_FOLDER).glob("*.tsv"))
        raise DataError(
            f"{qrels} does not exist. The split {split} of a BEIR folder is read from it. {folder / QRELS_FOLDER} has "
            f"{', '.join(found) or 'no .tsv file'}. Add the file, or name another one of the folder, for example "
            f"data.{split}={folder / QRELS_FOLDER / (found[0] if found else 'test.tsv')}."
        )
    documents = read_corpus(folder, reading, mask)
    queries = _read_texts(folder / QUERIES_FILE, "query", reading, mask)
    judgments = _read_judgments(qrels, list(queries), list(documents), reading)
    judged = {judgment.query: "" for judgment in judgments}
    order = {query: index for index, query in enumerate(judged)}
    texts = list(queries.items())
    used = dict(texts[query] for query in judged)
    return BeirSet(
        name=folder.resolve().name,
        qrels=qrels,
        queries=used,
        documents=documents,
        judgments=[Judgment(each.location, order[each.query], each.document, each.grade) for each in judgments],
        warnings=[
            *_repeats(folder / CORPUS_FILE, "documents", documents, _DOCUMENTS_ALIKE),
            *_repeats(folder / QUERIES_FILE, "queries", used, _QUERIES_ALIKE),
        ],
    )


def read_corpus(folder: Path, reading: Reading, mask: Callable[[str], str] | None = None) -> dict[str, str]:
    """Reads the documents of a folder by id.

    Args:
        folder: Folder with a `corpus.jsonl`.
        reading: Handling of bad rows.
        mask: See `read_beir`.

    Raises:
        DataError: The file is damaged or without usable rows, or a row is bad and `reading` does not skip it.
    """
    return _read_texts(folder / CORPUS_FILE, "document", reading, mask)


def _read_texts(path: Path, kind: str, reading: Reading, mask: Callable[[str], str] | None) -> dict[str, str]:
    """Reads the texts of a file by id; a title comes before its text."""
    texts: dict[str, str] = {}

    def keep(location: str, row: JsonValue) -> None:
        key = _text_of(location, "_id", row.value["_id"])
        parts = [_text_of(location, name, row.value.get(name) or "") for name in ("title", "text")]
        text = " ".join(part for part in parts if part.strip())
        if not text:
            raise DataError(
                f"{location}: the {kind} {key!r} is empty. Each {kind} needs a text. Complete or remove it."
            )
        if key in texts:
            raise DataError(f"{location}: the id {key!r} occurs twice. Each {kind} needs its own id. Correct one.")
        texts[key] = text if mask is None else mask(text)

    for _ in json_objects(TableFile(path, (), kind="jsonl", as_is=("_id", "text")), reading, keep):
        pass
    if not texts:
        first = f" The first error: {reading.skipped[0]}" if reading.skipped else ""
        raise DataError(f"{path} has no usable row. It needs at least one {kind}. Add rows.{first}")
    return texts


def _text_of(location: str, name: str, value: Any) -> str:
    if not has_text(value):
        raise DataError(f"{location}: {name!r} is {value!r}. It must be text. Correct or remove the row.")
    text = str(value)
    check_surrogates(location, name, text)
    return text


def _read_judgments(path: Path, queries: Sequence[str], documents: Sequence[str], reading: Reading) -> list[Judgment]:
    """Reads the judgments of queries with a relevant document."""
    query_of = {key: index for index, key in enumerate(queries)}
    document_of = {key: index for index, key in enumerate(documents)}
    judged: dict[int, dict[int, Judgment]] = {}
    for row in read_rows(path, _COLUMNS, reading, TableFormat(kind="tsv")):
        with reading.handling_bad_row():
            location = f"{path}, {row.location}"
            query, document, cell = (row.values[column] for column in _COLUMNS)
            grade = read_cell(location, "score", cell, _grade)
            for name, key, known, file in (
                ("query-id", query, query_of, QUERIES_FILE),
                ("corpus-id", document, document_of, CORPUS_FILE),
            ):
                if key not in known:
                    raise DataError(
                        f"{location}: {name!r} is {key!r}, which is not an id of {file}. Judgments need known ids. "
                        "Correct or remove the row."
                    )
            judgment = Judgment(location, query_of[query], document_of[document], grade)
            own = judged.setdefault(judgment.query, {})
            other = own.setdefault(judgment.document, judgment)
            if other.grade != grade:
                raise DataError(
                    f"{location}: the query {query!r} and the document {document!r} have the score {grade} here and "
                    f"{other.grade} in {other.location}. A pair has one score. Remove one of the rows."
                )
    kept: list[Judgment] = []
    for index, own in judged.items():
        if any(judgment.grade > 0 for judgment in own.values()):
            kept += own.values()
            continue
        with reading.handling_bad_row():
            raise DataError(
                f"{next(iter(own.values())).location}: the query {queries[index]!r} has no relevant document. Each "
                "judged query needs one with a score above 0. Add one, or remove the rows of the query."
            )
    if not kept:
        first = f" The first error: {reading.skipped[0]}" if reading.skipped else ""
        raise DataError(f"{path} has no usable row. It needs at least one judged query.{first}")
    return kept


def _grade(cell: str) -> int:
    try:
        return int(cell)
    except ValueError as error:
        raise ValueError("must be a whole number") from error


def _repeats(path: Path, kind: str, texts: Mapping[str, str], consequence: str) -> list[str]:
    """Returns a warning about equal texts under different ids; empty if there are none."""
    first: dict[str, str] = {}
    repeats = [(other, key) for key, text in texts.items() if (other := first.setdefault(same_text(text), key)) != key]
    if not repeats:
        return []
    return [
        f"{path}: equal texts have different ids ({len(repeats):,} of {len(texts):,} {kind}, for example "
        f"{repeats[0][0]!r} and {repeats[0][1]!r}). {consequence}"
    ]
