"""Metrics against pytrec_eval and by hand, predictions, the error analysis, and the losses over micro-batches."""

import json

import numpy as np
import pytest

from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import DataError
from framework.tasks.examination import ItemResults
from framework.tasks.explanation import one_item
from framework.tasks.reranking.candidates import CandidateList
from framework.tasks.reranking.features import candidate_source
from framework.tasks.reranking.scores import metrics_by_list, ranks_of
from framework.tasks.reranking.task import RerankingTask

LISTS = [
    CandidateList("1", "q", ("a", "b", "c"), (0.0, 2.0, 1.0)),
    CandidateList("2", "r", ("d", "e"), (1.0, 0.0)),
]
SCORES = [[3.0, 1.0, 2.0], [0.5, 0.5]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdeqr"]) + "\n")
    return Tokenizer.from_folder(folder)


def test_metrics_by_hand():
    """The second list has equal scores, so that its relevant document ranks last."""
    second, third = 1 / np.log2(3), 1 / 2
    values = metrics_by_list(LISTS, SCORES, top_k=10)
    assert values["ndcg_at_10"] == pytest.approx([(second + 2 * third) / (2 + second), second])
    assert values["mrr_at_10"] == pytest.approx([1 / 2, 1 / 2])
    assert values["map"] == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 2])
    assert metrics_by_list(LISTS, SCORES, top_k=1)["mrr_at_1"].tolist() == [0, 0]
    task = RerankingTask(top_k=2)
    assert task.best_metric == "ndcg_at_2"
    source = type("Source", (), {"records": LISTS})
    assert task.score(source, SCORES) == pytest.approx({
        "ndcg_at_2": (second / (2 + second) + second) / 2, "mrr_at_2": 1 / 2, "map": (7 / 12 + 1 / 2) / 2,
    })  # fmt: skip


def test_metrics_equal_pytrec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    random = np.random.default_rng(0)
    lists, scores = [], []
    for number in range(40):
        size = int(random.integers(1, 30))
        relevance = random.integers(0, 4, size) * (random.random(size) < 0.4)
        relevance[random.integers(size)] = 1
        lists.append(CandidateList(str(number), "q", tuple(map(str, range(size))), tuple(map(float, relevance))))
        scores.append(random.normal(size=size).tolist())
    qrels = {each.location: dict(zip(each.documents, map(int, each.relevance), strict=True)) for each in lists}
    run = {each.location: dict(zip(each.documents, own, strict=True)) for each, own in zip(lists, scores, strict=True)}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recip_rank"}).evaluate(run)
    values = metrics_by_list(lists, scores, top_k=10)
    for ours, theirs in (("ndcg_at_10", "ndcg_cut_10"), ("map", "map")):
        assert values[ours] == pytest.approx([measured[each.location][theirs] for each in lists], abs=1e-9)
    reciprocal = np.array([measured[each.location]["recip_rank"] for each in lists])
    assert values["mrr_at_10"] == pytest.approx(np.where(reciprocal >= 0.1, reciprocal, 0), abs=1e-9)


def test_ranks():
    assert ranks_of([0.5, 2.0, 0.5, 1.0]) == [3, 1, 4, 2]


def test_predictions(tokenizer):
    task = RerankingTask(max_length=9)
    assert task.fields == ("query", "documents") and task.list_fields == ("documents",)
    rows = [
        Row(1, None, {"query": "q", "documents": json.dumps(["a", "b c", "d"])}),
        Row(2, None, {"query": "r", "documents": "e"}),
    ]
    source = task.build_source(rows, tokenizer)
    # One item per document: the scores of a long list need not be computed at once.
    assert len(source) == 4 and source.group_size == 1
    assert {each.relevance for each in source.records} == {None}
    assert [(each.item, each.name) for (each,) in task.explained(source, [[0.1], [0.3], [0.2], [1.0]], None)] == [
        *[(1, "b c"), (3, "e")]
    ]
    assert task.assemble(source, [[0.1], [0.3], [0.2], [1.0]]) == [
        {"documents": ["a", "b c", "d"], "scores": [0.1, 0.3, 0.2], "ranks": [3, 1, 2]},
        {"documents": ["e"], "scores": [1.0], "ranks": [1]},
    ]
    pairs = task.pair_source([("q", "a"), ("q", "a"), ("r", "b c")], tokenizer)
    assert len(pairs) == 3 and pairs.group_size == 1
    # [CLS] r [SEP] b c [SEP]
    assert one_item(pairs, 2).input_ids.tolist() == [2, 11, 3, 6, 7, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": " "}, "row 1: 'query' is empty"),
        ({"documents": " "}, "row 1: 'documents' is empty"),
        ({"documents": "[]"}, "row 1: 'documents' is an empty list"),
        ({"documents": '["a", " "]'}, "row 1: document 2 of 'documents' is"),
        ({"documents": '["a", "a"]'}, "row 1: documents 1 and 2 are equal: 'a'"),
    ],
)
def test_rows_that_cannot_be_predicted(change, message, tokenizer):
    with pytest.raises(DataError, match=message):
        RerankingTask().check_row(Row(1, None, {"query": "q", "documents": "a"} | change), tokenizer)


def test_the_error_analysis_shows_the_ranking(tokenizer):
    task = RerankingTask(max_length=9, loss="listwise")
    source = candidate_source(LISTS, tokenizer, 9, task.loss, task.objective.count)
    lengths = source.lengths(np.zeros(2, np.int64), np.arange(2))
    examination = task.examine(source, ItemResults(SCORES, np.array([1.5, 0.7]), lengths))
    first = examination.rows[0]
    assert examination.score_name == "nDCG at 10" and first.score == pytest.approx(0.619906, abs=1e-6)
    assert (first.loss, first.expected, first.predicted, first.location) == (1.5, "b", "a", "1")
    assert first.text == "q\n1. 3.000 (0) a\n2. 2.000 (1) c\n3. 1.000 (2) b"
