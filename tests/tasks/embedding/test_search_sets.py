"""Metrics of judged queries by hand and against trec_eval; BEIR folders in the data of embeddings."""

import math

import numpy as np
import pytest

from framework.data.examples.beir import read_beir
from framework.data.reading.files import Reading
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.retrieval.search import nearest, unit
from framework.tasks.embedding.data import TextPairData
from framework.tasks.embedding.search_sets import SearchSet, SearchSource, query_scores, search_source, set_scores
from framework.tasks.embedding.task import EmbeddingTask
from tests.support.data.beir_folders import write_beir
from tests.support.exports.small_exports import make_tokenizer

COSINE = EmbeddingTask().index


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


def searched(name: str, grades: list[dict[int, int]], num_documents: int, own: list[int] | None = None) -> SearchSet:
    """Returns a set whose queries come first, then documents, one item each."""
    queries = len(grades)
    documents = np.stack([queries + np.arange(num_documents), np.zeros(num_documents, dtype=int)], axis=1)
    return SearchSet(name, np.arange(queries), documents, grades, np.array(own or [-1] * queries))


def vectors_of(queries: list[list[float]], documents: list[list[float]]) -> list[np.ndarray]:
    return [np.array([vector], dtype=np.float32) for vector in (*queries, *documents)]


# Cosines with the query fall with the index of the document.
DOCUMENTS = [[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]


def test_metrics_by_hand():
    """Ranks 2 and 4 of the first query are relevant, with grades 1 and 3. The second is answered at rank 1."""
    vectors = vectors_of([[1.0, 0.0], [1.0, 0.0]], DOCUMENTS)
    values = query_scores(vectors, searched("a", [{1: 1, 3: 3}, {0: 1}], 5), COSINE)
    gains = 1 / math.log2(3) + 3 / math.log2(5)
    expected = {
        "mrr": 1 / 2,
        "mrr_at_10": 1 / 2,
        "map_at_100": (1 / 2 + 2 / 4) / 2,
        "ndcg_at_10": gains / (3 + 1 / math.log2(3)),
        "recall_at_1": 0.0,
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "recall_at_100": 1.0,
        "precision_at_1": 0.0,
        "precision_at_5": 2 / 5,
        "precision_at_10": 2 / 10,
        "hit_rate_at_1": 0.0,
        "hit_rate_at_5": 1.0,
        "hit_rate_at_10": 1.0,
    }
    assert {name: each[0] for name, each in values.items()} == pytest.approx(expected, abs=1e-12)
    assert values["ndcg_at_10"][1] == values["precision_at_1"][1] == 1


def test_the_document_with_the_id_of_the_query_is_no_result():
    vectors = vectors_of([[1.0, 0.0]], DOCUMENTS)
    values = query_scores(vectors, searched("a", [{1: 1}], 5, own=[0]), COSINE)
    assert values["mrr"].tolist() == [1.0]


def test_sets_have_the_same_weight():
    a = searched("a", [{0: 1}, {0: 1}], 5)
    b = searched("b", [{4: 1}], 5)
    shifted = SearchSet("b", b.queries + 7, b.documents + np.array([7, 0]), b.grades, b.own)
    vectors = vectors_of([[1.0, 0.0]] * 2, DOCUMENTS) + vectors_of([[1.0, 0.0]], DOCUMENTS)
    values = set_scores(vectors, [a, shifted], COSINE)
    assert values["mrr"] == pytest.approx((1 + 1 / 5) / 2)
    assert values["a_ndcg_at_10"] == 1
    assert values["b_ndcg_at_10"] == pytest.approx(1 / math.log2(6))


def test_metrics_equal_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    generator = np.random.default_rng(0)
    num_queries, num_documents = 30, 400
    grades = [
        {int(document): int(generator.integers(1, 4)) for document in generator.choice(400, generator.integers(1, 30))}
        for _ in range(num_queries)
    ]
    queries, documents = (generator.normal(size=(rows, 8)) for rows in (num_queries, num_documents))
    for row, own in enumerate(grades):
        documents[[*own]] += 0.5 * queries[row]
    vectors = vectors_of(queries.tolist(), documents.tolist())
    values = query_scores(vectors, searched("a", grades, num_documents), COSINE)
    found = nearest(unit(queries.astype(np.float32)), unit(documents.astype(np.float32)), num_documents)
    run = {
        f"q{row}": {f"d{document}": float(score) for document, score in zip(indices[:100], scores, strict=False)}
        for row, (indices, scores) in enumerate(zip(found.indices, found.scores, strict=True))
    }
    qrels = {f"q{row}": {f"d{document}": grade for document, grade in own.items()} for row, own in enumerate(grades)}
    names = {
        "ndcg_at_10": "ndcg_cut_10",
        "map_at_100": "map_cut_100",
        **{f"recall_at_{k}": f"recall_{k}" for k in (1, 5, 10, 100)},
        **{f"precision_at_{k}": f"P_{k}" for k in (1, 5, 10)},
        "mrr": "recip_rank",
    }
    measures = {"ndcg_cut.10", "map_cut.100", "recall.1,5,10,100", "P.1,5,10", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for ours, name in names.items():
        expected = [theirs[f"q{row}"][name] for row in range(num_queries)]
        np.testing.assert_allclose(values[ours], expected, atol=1e-9, rtol=0)
    assert 0.1 < values["ndcg_at_10"].mean() < 0.9


TEXTS = {"d1": "a film", "d2": "a river", "d3": "a movie", "q1": "a picture"}
CORPUS = [{"_id": key, "text": text} for key, text in TEXTS.items()]
QUERIES = {"q1": "which film", "q2": "which water", "q3": "which film"}
JUDGED = {
    "train": [("q1", "d1", 1), ("q1", "d3", 2), ("q2", "d2", 1), ("q2", "d1", 0)],
    "test": [("q1", "d1", 1), ("q1", "d3", 2), ("q3", "d3", 1)],
}


def test_documents_are_items_once_unless_they_answer(tmp_path, tokenizer):
    read = read_beir(write_beir(tmp_path / "small", CORPUS, QUERIES, JUDGED), "test", Reading())
    source = search_source([read], ["contrast"], tokenizer, 16)
    (one,) = source.sets
    # Two queries with d3, then d1, d2 and q1.
    assert source.lengths(np.zeros(5, dtype=int), np.arange(5)).shape == (5,)
    assert one.queries.tolist() == [0, 1]
    assert one.documents.tolist() == [[2, 0], [3, 0], [0, 1], [4, 0]]
    assert one.grades == [{0: 1, 2: 2}, {2: 1}]
    assert one.own.tolist() == [3, -1]
    targets = source.source._targets
    assert targets["queries"].values.tolist() == [0, 0, 0, 0, -1, -1, -1]
    assert source.source._counts["contrast"].tolist() == [1, 0, 1, 0, 0, 0, 0]


def test_folders_take_the_place_of_files(tmp_path, tokenizer):
    folder = str(write_beir(tmp_path / "small", CORPUS, QUERIES, JUDGED))
    other = str(write_beir(tmp_path / "other", CORPUS, QUERIES, JUDGED))
    data = TextPairData(train=folder, test=[folder, other])
    sources = EmbeddingTask().build_sources(data, tokenizer, seed=0)
    assert list(sources) == ["train", "test"]
    assert len(sources["train"]) == 3
    assert isinstance(sources["test"], SearchSource)
    assert [each.name for each in sources["test"].sets] == ["small", "other"]
    assert sources["test"].facts.rows == 4
    alone = TextPairData(**TextPairData.alone("test", folder))
    assert list(EmbeddingTask().build_sources(alone, tokenizer, seed=0)) == ["test"]
    plain = {"train": "pairs.csv", "test": "pairs.csv"}
    assert TextPairData.alone("test", "pairs.csv") == plain


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "FOLDER", "test": ["FOLDER", "pairs.csv"]}, "lists pairs.csv, which is no BEIR folder"),
        ({"train": "FOLDER", "test": ["FOLDER", "FOLDER"]}, "two folders of the name small_test"),
        ({"train": "FOLDER", "test": []}, "empty list"),
        ({"train": None, "test": "pairs.csv"}, "`data.train` is null and `data.test` is pairs.csv"),
        ({"train": None}, "`data.train` is null and `data.test` is None"),
        ({"train": "FOLDER", "pair_column": None, "label_column": "label"}, "is the BEIR folder .* rows .* labelled"),
    ],
)
def test_wrong_files_are_named(tmp_path, tokenizer, files, message):
    folder = str(write_beir(tmp_path / "small", CORPUS, QUERIES, JUDGED))
    given = {
        key: [folder if each == "FOLDER" else each for each in value] if isinstance(value, list) else value
        for key, value in files.items()
    }
    given = {key: folder if value == "FOLDER" else value for key, value in given.items()}
    with pytest.raises(ConfigError, match=message):
        EmbeddingTask().build_sources(TextPairData(**given), tokenizer, seed=0)


@pytest.mark.parametrize("objective", ["similarity", "simcse"])
def test_some_objectives_have_no_search(tmp_path, tokenizer, objective):
    folder = str(write_beir(tmp_path / "small", CORPUS, QUERIES, JUDGED))
    with pytest.raises(ConfigError, match="the split test is a BEIR folder"):
        EmbeddingTask(objective).build_sources(TextPairData(train=None, test=folder), tokenizer, seed=0)
