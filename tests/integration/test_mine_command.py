"""The road of retrieval: mined rows against a brute-force search, BEIR folders, a reranker, answers of the FAQ.

The rows are equal at any number of processes and after an interruption.
"""

import io
import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from framework.data.examples.splits import same_text
from framework.data.tokenization.tokenizer import Tokenizer
from framework.inference import vector_files
from framework.mining import rows
from framework.modules.inference import Inference
from framework.tasks.embedding.data import TextPairData
from framework.tasks.embedding.task import EmbeddingTask
from framework.trained_model import load
from tests.support.commands.in_process import TINY, assert_clear_error, call, here, run_command, tokenizer_folder
from tests.support.data.beir_folders import write_beir
from tests.support.processes.ranks import Ranks

__all__ = ["call", "here", "tokenizer_folder"]

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["good", "fine", "bad", "poor"]
DOCUMENTS = [f"a {word} film of {year}" for year in range(1990, 1997) for word in WORDS]
# The second query has two positives, one of them twice; the last positive is no document.
PAIRS = [
    ("good film", "a good film of 1990"),
    ("bad 1991", "a bad film of 1991"),
    ("poor", "a poor film of 1992"),
    ("bad  1991", "a  poor film of 1991"),
    ("bad 1991", "a bad film of 1991"),
    ("a fine film of 1993", "a fine film of 1994"),
    ("good", "another good one"),
]
TRAIN = ["experiment=finetune_retrieval", "data.train=pairs.jsonl", "data.pair_column=pair", "data.label_column=null"]
TRAIN += ["data.validation=beir", "task.candidates=split", "task.matryoshka_sizes=[]", "init_from=null"]
TRAIN += ["model=demo", "tokenizer=folder", "tokenizer.path=tokenizer", "logger=none", "precision=fp32", "run.id=mine"]
TRAIN += ["trainer.max_steps=1", "trainer.max_epochs=null", "trainer.global_batch_size=4", *TINY]
MINE = ["run=mine", "queries=pairs.jsonl", "documents=documents.jsonl", "num_negatives=4", "precision=fp32"]
MINE += ["relative_margin=null", "scores=true", "micro_batch_tokens=64"]


def write_files(folder) -> None:
    pairs = [json.dumps({"text": query, "pair": positive}) for query, positive in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    # One document twice.
    documents = [json.dumps({"text": text}) for text in [*DOCUMENTS, f" {DOCUMENTS[0]} "]]
    (folder / "documents.jsonl").write_text("\n".join(documents) + "\n")
    corpus = [{"_id": f"d{number}", "text": text} for number, text in enumerate(DOCUMENTS)]
    judged = {"dev": [("q1", "d0", 1), ("q2", "d6", 2), ("q2", "d2", 1)], "test": [("q1", "d0", 1)]}
    write_beir(folder / "beir", corpus, {"q1": "good 1990", "q2": "bad film"}, judged)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tokenizer_folder):
    """Returns a folder with the files and a run."""
    folder = tmp_path_factory.mktemp("mining")
    (folder / "tokenizer").symlink_to(tokenizer_folder)
    write_files(folder)
    before = os.getcwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_command(monkeypatch, "train", *TRAIN) == 0
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def reranker_folder(run_folder, tmp_path_factory):
    """Returns the folder, with mined rows and a reranker that was trained on them."""
    changed = {
        "experiment=finetune_retrieval": "experiment=finetune_reranking",
        "data.train=pairs.jsonl": "data.train=faq/mined.jsonl",
        "data.validation=beir": "data.validation_fraction=0",
        "run.id=mine": "run.id=reranker",
    }
    embedding = ("data.pair_column", "data.label_column", "task.")
    given = [changed.get(word, word) for word in TRAIN if not word.startswith(embedding)]
    (run_folder / "faq").mkdir()
    before = os.getcwd()
    os.chdir(run_folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_command(monkeypatch, "mine", *MINE, "output=faq/mined.jsonl", "num_negatives=3") == 0
        assert run_command(monkeypatch, "train", *given) == 0
    os.chdir(before)
    for name, run in (("embedding", "mine"), ("reranker", "reranker")):
        (run_folder / "faq" / name).symlink_to(run_folder / "runs" / run)
    return run_folder


def small_parts() -> None:
    """Makes blocks of 5 texts and parts of 2 pairs."""
    vector_files.BLOCK_ROWS = 5
    rows.PAIRS_AT_ONCE = 2
    from framework.mining import mining

    mining.PAIRS_AT_ONCE = 2


@pytest.fixture(autouse=True)
def in_small_parts(monkeypatch):
    from framework.mining import mining

    for module, name, value in (
        (vector_files, "BLOCK_ROWS", 5),
        (rows, "PAIRS_AT_ONCE", 2),
        (mining, "PAIRS_AT_ONCE", 2),
    ):
        monkeypatch.setattr(module, name, value)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_equal_a_brute_force_search(run_folder, monkeypatch, capfd):
    monkeypatch.chdir(run_folder)
    assert run_command(monkeypatch, "mine", *MINE, "output=mined.jsonl", "range_min=1", "range_max=6") == 0
    printed = capfd.readouterr()
    assert "7 rows, 4.00 negatives each, from 28 documents, 1 repeated document searched once" in printed.out
    passes = ["encode queries: 5 rows", "encode documents: 28 rows", "encode positives: 1 rows"]
    assert printed.err.splitlines() == [*passes, "search: 7 rows"]
    assert not (run_folder / "mined.jsonl.mining").exists()
    model = load("mine", precision="fp32")
    embedded = dict(zip(DOCUMENTS, model.embed(DOCUMENTS), strict=True))
    known = {
        same_text(query): {same_text(other) for asked, other in PAIRS if same_text(asked) == same_text(query)}
        for query, _ in PAIRS
    }
    mined = read(run_folder / "mined.jsonl")
    assert [(same_text(row["query"]), same_text(row["positive"])) for row in mined] == [
        (same_text(query), same_text(positive)) for query, positive in PAIRS
    ]
    for row in mined:
        vector = model.embed([row["query"]])[0]
        allowed = [text for text in DOCUMENTS if text not in known[same_text(row["query"])] | {row["query"]}]
        ranked = sorted(allowed, key=lambda text: -float(vector @ embedded[text]))
        scores = [float(vector @ embedded[text]) for text in row["negatives"]]
        np.testing.assert_allclose(row["scores"][1:], scores, atol=1e-6)
        np.testing.assert_allclose(scores, [float(vector @ embedded[text]) for text in ranked[1:5]], atol=1e-6)
        assert len(set(row["negatives"])) == 4


def test_any_number_of_processes_writes_the_same(run_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(run_folder)
    given = [*MINE, "sampling=random", "relative_margin=0.01", "range_max=12"]
    contents = []
    for num_ranks in (1, 3):
        output = tmp_path / f"{num_ranks}.jsonl"
        ranks = Ranks([*given, f"output={output}"], num_ranks, tmp_path / "log.txt", small_parts, "mine")
        assert ranks.wait(120) == [0] * num_ranks, ranks.read_output()
        contents.append(output.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].count(b"\n") == len(PAIRS)


def test_an_interrupted_command_continues(run_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(run_folder)
    given = [*MINE, f"vectors={tmp_path / 'vectors'}"]
    assert run_command(monkeypatch, "mine", *MINE, f"output={tmp_path / 'whole.jsonl'}") == 0
    encoded: list[int] = []
    decode = Inference.decode

    def until(number: int):
        def decode_some(inference, source, *given):
            if len(encoded) == number:
                raise SystemExit(9)
            encoded.append(len(source))
            return decode(inference, source, *given)

        return decode_some

    monkeypatch.setattr(Inference, "decode", until(3))
    assert run_command(monkeypatch, "mine", *given, f"output={tmp_path / 'mined.jsonl'}") == 9
    assert not (tmp_path / "mined.jsonl").exists()
    encoded.clear()
    monkeypatch.setattr(Inference, "decode", until(99))
    assert run_command(monkeypatch, "mine", *given, f"output={tmp_path / 'mined.jsonl'}") == 0
    # 5 queries, 28 documents and 1 further positive: 1, 6 and 1 blocks, of which 3 existed.
    assert encoded == [5, 5, 5, 3, 1]
    assert (tmp_path / "mined.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # The same texts are not encoded again, for other rules.
    encoded.clear()
    assert run_command(monkeypatch, "mine", *given, f"output={tmp_path / 'two.parquet'}", "num_negatives=2") == 0
    assert encoded == []
    table = pq.read_table(tmp_path / "two.parquet").to_pylist()
    assert [row["negatives"] for row in table] == [row["negatives"][:2] for row in read(tmp_path / "whole.jsonl")]
    data = TextPairData(str(tmp_path / "two.parquet"), text_column="query", pair_column="positive")
    data = TextPairData(**{**vars(data), "negative_columns": ["negatives"]})
    source = EmbeddingTask(max_length=16).build_sources(data, Tokenizer.from_folder(run_folder / "tokenizer"), 0)
    assert source["train"].group_size == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=mined.csv"], "output=mined.csv has the suffix .csv"),
        (["output=nowhere/mined.jsonl"], "output=nowhere/mined.jsonl cannot be written"),
        (["output=pairs.jsonl"], "output=pairs.jsonl is the input file pairs.jsonl"),
        (["output=x.jsonl", "query_column=question"], "no column 'question'"),
        (["output=x.jsonl", "documents=empty.jsonl"], "empty.jsonl, row 2 (line 2): 'text' is empty"),
        (["output=x.jsonl", "documents=one.jsonl"], "one.jsonl has 1 different documents"),
        (["output=x.jsonl", "range_max=0"], "`range_max` is 0"),
        (["output=x.jsonl", "run=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_error(call, here, overrides, message):
    write_files(here)
    (here / "empty.jsonl").write_text('{"text": "a film"}\n{"text": " "}\n')
    (here / "one.jsonl").write_text('{"text": "a film"}\n{"text": "a  film"}\n')
    assert_clear_error(call("mine", *MINE, *overrides), message)


def test_a_reranker_scores_the_candidates(reranker_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(reranker_folder)
    output = tmp_path / "reranked.jsonl"
    rules = ["num_negatives=2", "range_max=5", "absolute_margin=0.0"]
    assert run_command(monkeypatch, "mine", *MINE, *rules, "reranker=reranker", f"output={output}") == 0
    model = load("reranker", precision="fp32")
    for row in read(output):
        documents = [row["positive"], *row["negatives"]]
        (predicted,) = model.predict([{"query": row["query"], "documents": json.dumps(documents)}])
        np.testing.assert_allclose(row["scores"], predicted["scores"], atol=1e-5)
        assert row["scores"][1:] == sorted(row["scores"][1:], reverse=True)
        assert all(score <= row["scores"][0] for score in row["scores"])


def test_questions_are_answered(reranker_folder, monkeypatch, capsys):
    program = runpy.run_path(str(ROOT / "launch" / "lib" / "faq.py"))
    rows = [{"query": f"a film {number}", "positive": answer} for number in range(30) for _, answer in PAIRS]
    (reranker_folder / "faq" / "mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", ["faq.py", str(reranker_folder / "faq")])
    monkeypatch.setattr("sys.stdin", io.StringIO("a bad film\n\n"))
    program["main"]()
    tested, first, *lines = capsys.readouterr().out.splitlines()
    assert re.match(r"\d+ questions outside of the training: the first answer is right for \d\.\d{3} by the", tested)
    answers = {answer for _, answer in PAIRS}
    assert first == f"{len(answers)} answers. Type a question; an empty line ends."
    assert lines[0] == "question> a bad film"
    scores, shown = zip(*(line.strip().split("  ", 1) for line in lines[1:4]), strict=True)
    assert set(shown) < answers
    assert list(map(float, scores)) == sorted(map(float, scores), reverse=True)
    assert re.fullmatch(r" *\d+ ms", lines[4])


def test_a_run_is_evaluated_on_beir_folders(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    validated = json.loads((run_folder / "runs" / "mine" / "summary.json").read_text())
    given = ["run=mine", "precision=fp32", "report=false"]
    assert run_command(monkeypatch, "evaluate", *given, "output=own.json") == 0
    own = json.loads((run_folder / "own.json").read_text())["metrics"]
    assert own["ndcg_at_10"] == pytest.approx(validated["last"]["val/ndcg_at_10"], abs=1e-6)
    both = "data.test=[beir/qrels/dev.tsv,beir/qrels/test.tsv]"
    assert run_command(monkeypatch, "evaluate", *given, both, "output=both.json") == 0
    report = json.loads((run_folder / "both.json").read_text())
    assert [row["set"] for row in report["classes"]] == ["beir_dev", "beir_test"]
    assert report["metrics"]["beir_dev_ndcg_at_10"] == pytest.approx(own["ndcg_at_10"], abs=1e-6)
    mean = np.mean([row["ndcg_at_10"] for row in report["classes"]])
    assert report["metrics"]["ndcg_at_10"] == pytest.approx(mean, abs=1e-9)
