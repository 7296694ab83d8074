"""BEIR folders: texts, judgments, and one error with file and row for each kind of bad input."""

import pytest

from framework.data.examples.beir import is_beir, read_beir
from framework.data.reading.files import Reading
from framework.errors import DataError
from tests.support.data.beir_folders import write_beir

DOCUMENTS = [
    {"_id": "d1", "title": "Paris", "text": "The capital of France.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "A river."},
    {"_id": "d3", "text": "A  river."},
    {"_id": "d4", "title": "Only a title", "text": ""},
]
QUERIES = {"q1": "capital of France", "q2": "which river", "q3": "in another split"}
TEST = [("q2", "d2", 2), ("q2", "d1", 0), ("q1", "d1", 1), ("q2", "d4", 1)]


def test_texts_and_judgments_are_read(tmp_path):
    folder = write_beir(tmp_path / "small", DOCUMENTS, QUERIES, {"test": TEST, "train": [("q3", "d1", 1)]})
    assert is_beir(folder) and is_beir(folder / "qrels" / "test.tsv") and not is_beir(tmp_path)
    read = read_beir(folder, "test", Reading())
    assert read.name == "small"
    assert dict(read.documents) == {
        "d1": "Paris The capital of France.",
        "d2": "A river.",
        "d3": "A  river.",
        "d4": "Only a title",
    }
    assert list(read.queries) == ["q2", "q1"]
    assert read.grades() == [{1: 2, 3: 1}, {0: 1}]
    (warning,) = read.warnings
    assert "corpus.jsonl: equal texts have different ids (1 of 4 documents, for example 'd2' and 'd3')" in warning
    twice = write_beir(tmp_path / "twice", DOCUMENTS, QUERIES | {"q1": "which  river"}, {"test": TEST})
    assert (
        "queries.jsonl: equal texts have different ids (1 of 2 queries, for example 'q2' and 'q1')"
        in (read_beir(twice, "test", Reading()).warnings[1])
    )
    assert list(read_beir(folder / "qrels" / "train.tsv", "test", Reading()).queries) == ["q3"]
    with pytest.raises(DataError, match=r"dev\.tsv does not exist.*has test\.tsv, train\.tsv"):
        read_beir(folder, "validation", Reading())


BAD = {
    "unknown query": ({}, {}, [*TEST, ("q9", "d1", 1)], r"test\.tsv, row 5.*'query-id' is 'q9', which is not an id"),
    "unknown document": ({}, {}, [*TEST, ("q1", "d9", 1)], r"test\.tsv, row 5.*'corpus-id' is 'd9', which is not"),
    "no relevant": ({}, {}, [*TEST, ("q3", "d1", 0)], r"test\.tsv, row 5.*'q3' has no relevant document"),
    "grade": ({}, {}, [*TEST, ("q3", "d1", "high")], r"test\.tsv, row 5.*'score' is 'high'.*whole number"),
    "two grades": ({}, {}, [*TEST, ("q1", "d1", 2)], r"test\.tsv, row 5.*score 2 here and 1 in .*row 3"),
    "empty document": ({"_id": "d5", "title": " ", "text": "\t"}, {}, TEST, r"corpus\.jsonl, row 5.*'d5' is empty"),
    "id twice": ({"_id": "d1", "text": "other"}, {}, TEST, r"corpus\.jsonl, row 5.*the id 'd1' occurs twice"),
    "no text": ({"_id": "d5", "text": ["a"]}, {}, TEST, r"corpus\.jsonl, row 5.*'text' is \['a'\]"),
    "empty query": ({}, {"q4": " "}, TEST, r"queries\.jsonl, row 4.*the query 'q4' is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_error_or_skipped(tmp_path, case):
    document, query, judgments, message = BAD[case]
    documents = [*DOCUMENTS, *([document] if document else [])]
    folder = write_beir(tmp_path / "bad", documents, QUERIES | query, {"test": judgments})
    with pytest.raises(DataError, match=message):
        read_beir(folder, "test", Reading())
    reading = Reading("skip")
    assert read_beir(folder, "test", reading).grades() == [{1: 2, 3: 1}, {0: 1}]
    assert reading.num_skipped == 1


def test_a_folder_without_usable_judgments_is_rejected(tmp_path):
    folder = write_beir(tmp_path / "bad", DOCUMENTS, QUERIES, {"test": [("q9", "d1", 1)]})
    with pytest.raises(DataError, match=r"no usable row.*'q9'"):
        read_beir(folder, "test", Reading("skip"))
