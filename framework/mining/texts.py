"""Reads the queries with their positives and the documents to mine, from tables or from a BEIR folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.config.mine_schema import MineConfig
from framework.data.examples.answers import require_text
from framework.data.examples.beir import is_beir, read_beir, read_corpus
from framework.data.examples.splits import same_text
from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.errors import DataError


@dataclass(eq=False)
class MinedTexts:
    """Distinct texts; texts that differ only in white space are equal (`same_text`).

    Attributes:
        queries: Texts of the queries.
        documents: Texts of the documents, then positives that are not among the documents.
        num_documents: Number of documents that may be negatives.
        pairs: Query and document of each pair, in the order of the rows.
        known: For each query its positives, and a document that equals it; none of them may be a negative.
        num_skipped: Number of bad rows.
        num_repeats: Number of documents that repeat another one.
    """

    queries: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    num_documents: int = 0
    pairs: list[tuple[int, int]] = field(default_factory=list)
    known: list[set[int]] = field(default_factory=list)
    num_skipped: int = 0
    num_repeats: int = 0


def read_texts(settings: MineConfig) -> MinedTexts:
    """Reads and joins the texts.

    Raises:
        DataError: A file cannot be read, a row is bad and `on_bad_row` is "error", or there are fewer than two
            documents.
    """
    reading = Reading(settings.on_bad_row)
    pairs, documents = _read_pairs(settings, reading)
    if settings.documents is not None:
        documents = _read_documents(settings, settings.documents, reading)
    texts = MinedTexts(num_skipped=reading.num_skipped)
    index_of: dict[str, int] = {}
    for text in documents:
        _add(text, texts.documents, index_of)
    texts.num_documents = len(texts.documents)
    # Positives that serve as documents often repeat.
    has_own_documents = settings.documents is not None or is_beir(Path(settings.queries))
    texts.num_repeats = len(documents) - len(texts.documents) if has_own_documents else 0
    if texts.num_documents < 2:
        raise DataError(
            f"{settings.documents or settings.queries} has {texts.num_documents} different documents. Mining needs at "
            "least 2. Add documents, or name a file with `documents`."
        )
    query_of: dict[str, int] = {}
    for query, positive in pairs:
        number = _add(query, texts.queries, query_of)
        document = _add(positive, texts.documents, index_of)
        if number == len(texts.known):
            texts.known.append({index_of[same]} if (same := same_text(query)) in index_of else set())
        texts.known[number].add(document)
        texts.pairs.append((number, document))
    return texts


def _add(text: str, texts: list[str], index_of: dict[str, int]) -> int:
    """Adds a text unless an equal one is known; returns its index."""
    index = index_of.setdefault(same_text(text), len(texts))
    if index == len(texts):
        texts.append(text)
    return index


def _read_pairs(settings: MineConfig, reading: Reading) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the pairs of query and positive, and the documents that come with them."""
    path = Path(settings.queries)
    if is_beir(path):
        read = read_beir(path, "train", reading)
        queries, documents = list(read.queries.values()), list(read.documents.values())
        judged = [each for each in read.judgments if each.grade > 0]
        return [(queries[each.query], documents[each.document]) for each in judged], documents
    columns = (settings.query_column, settings.positive_column)
    pairs = [(query, positive) for query, positive in _rows(path, columns, settings, reading)]
    if not pairs:
        raise DataError(f"{path} has no usable row. The first error: {reading.skipped[0]}")
    return pairs, [positive for _, positive in pairs]


def _read_documents(settings: MineConfig, given: str, reading: Reading) -> list[str]:
    path = Path(given)
    if is_beir(path):
        return list(read_corpus(path, reading).values())
    return [text for (text,) in _rows(path, (settings.document_column,), settings, reading)]


def _rows(path: Path, columns: Sequence[str], settings: MineConfig, reading: Reading) -> list[tuple[str, ...]]:
    rows = []
    for row in read_rows(path, columns, reading, settings.format):
        with reading.handling_bad_row():
            location = f"{path}, {row.location}"
            rows.append(tuple(require_text(location, column, row.values[column]) for column in columns))
    return rows
