"""Tests of question answering by the commands: two training steps, evaluation, and predictions for each row."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from framework.config.command import start
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining

ANIMALS = {"fox": "Ann", "bear": "Bob", "wolf": "Cid", "owl": "Dora", "hare": "Eve", "lynx": "Flo"}
CONTEXTS = [f"At noon the {animal} came to the river, and {name} saw it." for animal, name in ANIMALS.items()]
TINY = [
    "experiment=finetune_qa",
    "init_from=null",
    "data.train=q.json",
    "data.validation_fraction=0.5",
    "tokenizer.path=tokenizer",
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.intermediate_size=16",
    "model.vocab_size=null",
    "task.max_length=24",
    "task.stride=6",
    "task.max_question_length=8",
    "trainer.max_steps=2",
    "trainer.global_batch_size=4",
    "precision=fp32",
    "logger=none",
    "run.id=mine",
]


def questions_about(context: str) -> list[dict]:
    animal, name = context.split()[3], context.split()[9]
    return [
        {"question": "What came to the river?", "answers": [{"text": animal, "answer_start": context.index(animal)}]},
        {"question": f"Who saw the {animal}?", "answers": [{"text": name, "answer_start": context.index(name)}]},
    ]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd) -> Callable[..., str]:
    """Returns a function that runs a command in a folder with questions and a tokenizer, and returns its errors."""
    monkeypatch.chdir(tmp_path)
    training = WordPieceTraining(120)
    training.train(WordCounts(training.count([*CONTEXTS, "What who?"])), tmp_path / "tokenizer")
    paragraphs = [{"context": context, "qas": questions_about(context)} for context in CONTEXTS]
    Path("q.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")

    def run(command: str, *overrides: str) -> str:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [command, *overrides])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        code: object = 0
        try:
            start(f"framework.{command}")
        except SystemExit as error:
            code = error.code
        captured = capfd.readouterr()
        return captured.err if code else ""

    return run


def test_from_training_to_prediction(call):
    assert call("train", *TINY) == ""
    last = json.loads(Path("runs/mine/summary.json").read_text())["last"]
    assert call("evaluate", "run=mine", "output=scores.json", "precision=fp32") == ""
    metrics = json.loads(Path("scores.json").read_text())["metrics"]
    assert metrics == pytest.approx({name: last[f"val/{name}"] for name in ("loss", "exact_match", "f1")}, rel=1e-5)

    # The second context needs several windows.
    rows = [("Who?", CONTEXTS[2]), ("What came?", " ".join(CONTEXTS)), ("Who saw the fox?", CONTEXTS[0])]
    requests = [{"q": question, "context": context, "id": index} for index, (question, context) in enumerate(rows)]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, requests)), encoding="utf-8")
    names = ["columns={question: q}", "keep_columns=[id]"]
    assert call("predict", "run=mine", "input=in.jsonl", "output=out.jsonl", *names) == ""
    predictions = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["q"], row["context"]) for row in predictions] == rows
    assert [row["id"] for row in predictions] == [0, 1, 2]
    for row in predictions:
        assert row["answer"] == row["context"][row["start"] : row["end"]] != ""
        assert row["probability"] == max(answer["probability"] for answer in row["n_best"])
        assert sum(answer["probability"] for answer in row["n_best"]) == pytest.approx(1)
    assert len(predictions[1]["n_best"]) == 20

    # An override of n_best applies, and the file records it.
    assert call("evaluate", "run=mine", "output=scores.json", "task={n_best: 2}") == ""
    assert json.loads(Path("scores.json").read_text())["task"] == '{"n_best": 2}'
    assert call("predict", "run=mine", "input=in.jsonl", "output=out.jsonl", *names, "task={n_best: 2}") == ""
    assert len(json.loads(Path("out.jsonl").read_text(encoding="utf-8").splitlines()[1])["n_best"]) == 2


def test_what_cannot_be_asked_is_told_before_anything_runs(call):
    broken = json.loads(Path("q.json").read_text())
    broken["data"][0]["paragraphs"][3]["qas"][1]["answers"][0]["answer_start"] = 900
    Path("q.json").write_text(json.dumps(broken))
    error = call("train", *TINY)
    assert error.startswith("DataError") and error.count("\n") == 1
    assert (
        "q.json, article 1, paragraph 4, question 2: the answer 'Dora' from character 900 exceeds the context" in error
    )
    assert not Path("runs").exists()
    assert call("train", *TINY, "task.max_length=16").startswith("ConfigError: max_length=16 has room for 5 tokens")
    assert call("train", *TINY, "data.on_bad_row=skip") == ""
