"""Rows of every form by hand, and one clear error for each kind of bad row."""

import json

import pytest

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.reranking.data import CandidateData
from framework.tasks.reranking.task import RerankingTask

LISTS = {"document_column": "documents", "label_column": "labels"}
PAIRS = {"document_column": "document", "label_column": "label"}


def written(folder, *rows: dict) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(data: CandidateData) -> list[tuple]:
    return [(each.query, each.documents, each.relevance, each.teacher_scores) for each in data.load().splits["train"]]


def test_positives_and_negatives(tmp_path):
    rows = [
        {"query": "q", "positive": "a", "negatives": ["b", "c"], "scores": [2, 1.5, -1]},
        {"query": "r", "positive": ["d", "e"], "negatives": [], "scores": [1, 2]},
    ]
    data = CandidateData(written(tmp_path, *rows), teacher_column="scores")
    assert read(data) == [
        ("q", ("a", "b", "c"), (1, 0, 0), (2, 1.5, -1)),
        ("r", ("d", "e"), (1, 1), (1, 2)),
    ]
    (tmp_path / "rows.csv").write_text('query,good,no_1,no_2\nq,a,b,\nr,"[""c"", ""d""]",e,f\n')
    data = CandidateData(str(tmp_path / "rows.csv"), positive_columns=["good"], negative_columns=["no_1", "no_2"])
    assert read(data) == [("q", ("a", "b"), (1, 0), None), ("r", ("c", "d", "e", "f"), (1, 1, 0, 0), None)]


def test_lists_with_labels_or_with_a_teacher(tmp_path):
    rows = [{"query": "q", "documents": ["a", "[b", "c"], "labels": [0, 3, 0.5], "scores": [1, 2, 5]}]
    path = written(tmp_path, *rows)
    assert read(CandidateData(path, **LISTS)) == [("q", ("a", "[b", "c"), (0, 3, 0.5), None)]
    # Without labels, the best document of the teacher is relevant.
    data = CandidateData(path, document_column="documents", teacher_column="scores")
    assert read(data) == [("q", ("a", "[b", "c"), (0, 0, 1), (1, 2, 5))]


def test_pairs_are_grouped_by_query(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "query,document,label,score\nq,a,0,1\nr,b,1,2\nq ,c,2,3\nq,d,0,4\nr,e,0,5\n", encoding="utf-8"
    )
    data = CandidateData(str(tmp_path / "rows.csv"), **PAIRS, teacher_column="score")
    assert read(data) == [("q", ("a", "c", "d"), (0, 2, 0), (1, 3, 4)), ("r", ("b", "e"), (1, 0), (2, 5))]


def test_a_query_belongs_to_one_split(tmp_path):
    rows = [{"query": f"q{number % 40}", "positive": f"p{number}", "negatives": ["n"]} for number in range(200)]
    splits = CandidateData(written(tmp_path, *rows), validation_fraction=0.3).load().splits
    train, validation = ({each.query for each in splits[name]} for name in ("train", "validation"))
    assert train and validation and not train & validation
    assert sum(map(len, splits.values())) == 200


GOOD = {"query": "q", "documents": ["x", "y"], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": " "}, "row 2 (line 2): 'query' is empty"),
        ({"documents": ["a", ""]}, "row 2 (line 2): document 2 of 'documents' is empty"),
        ({"documents": ["a", "b", " a "], "labels": [1, 0, 0]}, "row 2 (line 2): documents 1 and 3 are equal: ' a '"),
        ({"documents": []}, "row 2 (line 2): the row has no document"),
        ({"labels": [0, 0]}, "row 2 (line 2): the query 'q' has no relevant document among its 2 candidates"),
        ({"labels": [1]}, "row 2 (line 2): 'labels' has 1 number, but the row has 2 documents"),
        ({"labels": [1, "x"]}, "row 2 (line 2): 'labels' is '[\"1\", \"x\"]'. It must hold finite numbers"),
        ({"labels": [1, -1]}, "row 2 (line 2): 'labels' has -1. Relevance is 0 or larger"),
        ({"scores": [1, 2, 3]}, "row 2 (line 2): 'scores' has 3 numbers, but the row has 2 documents"),
    ],
)
def test_bad_rows_are_named_or_skipped(change, message, tmp_path):
    teacher = {"teacher_column": "scores"} if "scores" in change else {}
    good = GOOD | ({"scores": [1, 2]} if teacher else {})
    path = written(tmp_path, good, good | change, good)
    with pytest.raises(DataError) as error:
        CandidateData(path, **LISTS, **teacher).load()
    assert str(error.value).startswith(f"{path}, {message}")
    skipping = CandidateData(path, **LISTS, **teacher, on_bad_row="skip").load()
    assert len(skipping.splits["train"]) == 2 and skipping.facts["train"].num_skipped == 1


@pytest.mark.parametrize(
    ("rows", "message", "skipped"),
    [
        ("q,a,1\nr,b,1\nq,a,0\n", "row 3 (line 4): the query 'q' has the document 'a' twice, first in", 2),
        ("r,a,1\nq,a,0\nq,b,0\n", "row 2 (line 3): the query 'q' has no relevant document among its 2", 2),
        ("r,a,1\nq,,1\n", "row 2 (line 3): the row has no document", 1),
    ],
)
def test_bad_pairs_are_named_or_skipped(rows, message, skipped, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,document,label\n" + rows)
    with pytest.raises(DataError) as error:
        CandidateData(str(path), **PAIRS).load()
    assert str(error.value).startswith(f"{path}, {message}")
    skipping = CandidateData(str(path), **PAIRS, on_bad_row="skip").load()
    assert [each.query for each in skipping.splits["train"]] == ["r"]
    assert skipping.facts["train"].num_skipped == skipped


def test_pairs_of_a_query_have_one_privacy_unit(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,document,label,user\nq,a,1,x\nq,b,0,y\n")
    with pytest.raises(DataError, match=r"row 1 \(line 2\): the rows of the query 'q' have different values of 'user'"):
        CandidateData(str(path), **PAIRS).with_units("user").load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_column": "x"}, "label_column is x, but data.document_column is null"),
        ({"positive_columns": []}, "positive_columns is empty"),
        ({"document_column": "x"}, "label_column and teacher_column are null"),
    ],
)
def test_columns_that_fit_no_form(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CandidateData("x", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "task.loss is 'hinge'"),
        ({"loss": "listwise", "positive_weight": 2.0}, "positive_weight is 2.0, but task.loss is listwise"),
        ({"loss": "listwise", "temperature": 2.0}, "temperature is 2.0, but task.loss is listwise"),
        ({"positive_weight": 0.0}, "task.positive_weight is 0"),
        ({"top_k": 0}, "task.top_k is 0"),
        ({"max_length": 4}, "max_length is 4"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RerankingTask(**arguments)


def test_losses_and_data_that_do_not_fit(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    tokenizer = Tokenizer.from_folder(tmp_path)
    path = written(tmp_path, GOOD | {"labels": [2, 0], "scores": [1, 2]}, GOOD | {"scores": [1, 2]})

    def build(loss: str, **columns) -> None:
        RerankingTask(loss).build_sources(CandidateData(path, **columns), tokenizer, 0)

    with pytest.raises(ConfigError, match=r"task\.loss is kl, but data\.teacher_column is null"):
        build("kl", **LISTS)
    with pytest.raises(ConfigError, match=r"teacher_column is scores, but task\.loss is listwise"):
        build("listwise", **LISTS, teacher_column="scores")
    build("listwise", document_column="documents", teacher_column="scores")
    with pytest.raises(DataError, match=r"row 1 \(line 1\): a document of the query 'q' has the relevance 2"):
        build("pointwise", **LISTS)
    path = written(tmp_path, {"query": "q", "positive": "x", "negatives": []})
    for loss in ("pointwise", "listwise"):
        with pytest.raises(DataError, match="no training query has candidates of different relevance"):
            build(loss)
