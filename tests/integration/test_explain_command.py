"""Tests of framework.explain: its rows, its choices of scores, and its errors."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framework import load
from framework.config.command_schema import ExplainConfig
from framework.config.shared_schema import PrecisionConfig
from framework.data.reading.rows import Row
from framework.errors import ConfigError, FrameworkError
from framework.explain import chosen_names
from framework.inference.input_rows import read_input_rows
from framework.inference.training_influence import open_training_rows
from framework.modules.explanations.influence import influences
from framework.runs.trained import open_inference, open_trained
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.explanation import Explained
from framework.tasks.question_answering.task import QuestionAnsweringTask
from framework.tasks.recommendation.task import RecommendationTask
from tests.support.commands.in_process import FINETUNE, call, here, run_command, tokenizer_folder, train_vocabulary
from tests.support.commands.in_process import assert_clear_error as assert_clear
from tests.support.processes.ranks import Ranks
from tests.support.tasks.commands import prepare

__all__ = ["call", "here", "tokenizer_folder"]

PLANTED = {"good": "1", "bad": "0"}
FILLERS = [f"w{letter}" for letter in "abcdefghij"]


def planted_text(number: int) -> tuple[str, str]:
    """Returns six words, one of which decides the label."""
    random = np.random.default_rng(number)
    words = [FILLERS[index] for index in random.integers(0, len(FILLERS), 5)]
    word = ("good", "bad")[number % 2]
    words.insert(int(random.integers(0, 6)), word)
    return " ".join(words), PLANTED[word]


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Returns a folder with the run `mine`, which has learned that one word decides, and 100 rows of test.jsonl."""
    folder = tmp_path_factory.mktemp("planted")
    rows = [planted_text(number) for number in range(300)]
    train_vocabulary([text for text, _ in rows], 60, folder / "tokenizer")
    lines = [f"{text},{label}" for text, label in rows[:200]]
    (folder / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    with (folder / "test.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": number, "text": text}) + "\n" for number, (text, _) in enumerate(rows[200:]))
    sizes = ["trainer.max_steps=60", "trainer.global_batch_size=16", "optimizer.lr=0.005"]
    sizes += ["trainer.checkpoint_every_n_steps=30", "trainer.log_every_n_steps=30"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *FINETUNE, *sizes) == 0
    return folder


def explained(planted: Path, monkeypatch, capfd, *overrides: str) -> list[dict]:
    monkeypatch.chdir(planted)
    assert run_command(monkeypatch, "explain", "run=mine", *overrides) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.parametrize("method", ["integrated_gradients", "leave_one_out"])
def test_the_word_that_decides_comes_first_in_every_row(planted, monkeypatch, capfd, method):
    rows = explained(planted, monkeypatch, capfd, "input=test.jsonl", "keep_columns=[id]", f"method={method}")
    assert [row["id"] for row in rows] == list(range(100))
    for number, row in enumerate(rows, start=200):
        text, label = planted_text(number)
        assert (row["label"], row["explained"]) == (label, label)
        assert all(text[word["start"] : word["end"]] == word["text"] for word in row["words"])
        assert [word["text"] for word in row["words"]] == text.split()
        assert max(row["words"], key=lambda word: word["score"])["text"] in PLANTED
        if method == "integrated_gradients":
            total = sum(word["score"] for word in row["words"])
            assert total == pytest.approx(row["score"] - row["baseline_score"], abs=0.02)


def test_each_label_or_one_is_explained(planted, monkeypatch, capfd):
    both = explained(planted, monkeypatch, capfd, "text=wa good wb", "explain=all")
    assert [row["explained"] for row in both] == ["0", "1"]
    (one,) = explained(planted, monkeypatch, capfd, "text=wa good wb", "explain=0")
    assert one == both[0]
    (predicted,) = explained(planted, monkeypatch, capfd, "text=wa good wb")
    assert predicted == both[1]
    (row,) = load("mine").predict(["wa good wb"])
    assert predicted["probability"] == pytest.approx(row["probability"], abs=0.01)


def test_two_ranks_write_what_one_writes(planted, monkeypatch, tmp_path):
    monkeypatch.chdir(planted)
    files = []
    for num_ranks in (1, 2):
        files.append(tmp_path / f"{num_ranks}.jsonl")
        overrides = ["run=mine", "input=test.jsonl", f"output={files[-1]}", "steps=8"]
        ranks = Ranks(overrides, num_ranks, tmp_path / f"{num_ranks}.txt", command="explain")
        assert ranks.wait(120) == [0] * num_ranks, ranks.read_output()
    one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len(one) == len(two) == 100
    for alone, shared in zip(one, two, strict=True):
        assert shared["score"] == pytest.approx(alone["score"], abs=1e-5)
        scores = [[word["score"] for word in row["words"]] for row in (alone, shared)]
        assert np.allclose(*scores, atol=1e-5)


def test_a_row_that_is_skipped_keeps_its_line(planted, monkeypatch, capfd):
    (planted / "gap.jsonl").write_text('{"text": "wa good"}\n{"texts": "x"}\n{"text": "wb bad"}\n')
    monkeypatch.chdir(planted)
    arguments = ("run=mine", "input=gap.jsonl", "on_bad_row=skip", "output=gap.csv", "steps=8")
    assert run_command(monkeypatch, "explain", *arguments) == 0
    assert "1 of 3 rows are not predicted" in capfd.readouterr().err
    with (planted / "gap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["explained"] for row in rows] == ["1", "", "0"]
    assert rows[1]["error"] and [word["text"] for word in json.loads(rows[0]["words"])] == ["wa", "good"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=nowhere", "text=x", "steps=4"], "`steps` is 4. Integrated gradients need at least 8 points."),
        (["run=nowhere", "text=x", "method=magic"], "method"),
        (["run=nowhere", "text=x", "output=out.parquet"], "output=out.parquet has no place for explanations"),
    ],
)
def test_bad_settings_are_rejected_before_the_model_is_read(call, overrides, message):
    assert_clear(call("explain", *overrides), message)


def test_a_label_that_the_run_does_not_have_is_rejected(planted, monkeypatch, capfd):
    monkeypatch.chdir(planted)
    assert run_command(monkeypatch, "explain", "run=mine", "text=x", "explain=2") == 2
    assert (
        "`explain` is '2', which is no label of this run. Choose label, all or one of 0, 1." in capfd.readouterr().err
    )


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Path:
    """Returns a folder with the run `one`, which has learned to tag people and places."""
    folder = tmp_path_factory.mktemp("tagged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *prepare("token_classification", folder), "run.id=one") == 0
    return folder


def test_entities_are_explained_and_a_text_without_any_keeps_its_line(tagged, monkeypatch, capfd):
    monkeypatch.chdir(tagged)
    texts = "text=[ada lives in furt,in,bela rot sang in dorf]"
    assert run_command(monkeypatch, "explain", "run=runs/one", texts) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["text"], row["explained"], row["entity"]) for row in rows] == [
        *[("ada lives in furt", "person", 0), ("ada lives in furt", "place", 1), ("in", None, None)],
        *[("bela rot sang in dorf", "person", 0), ("bela rot sang in dorf", "place", 1)],
    ]
    assert rows[2]["words"] == [] and rows[2]["tags"] == ["O"]
    assert all((row["completeness_error"] or 0) < 1e-2 for row in rows)
    assert max(rows[3]["words"], key=lambda word: word["score"])["text"] in ("bela", "rot")
    assert run_command(monkeypatch, "explain", "run=runs/one", texts, "explain=place") == 0
    places = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [places[0]["words"], places[2]["words"]] == [rows[1]["words"], rows[4]["words"]]


def test_columns_of_words_are_explained_but_not_written(tagged, monkeypatch, capfd):
    monkeypatch.chdir(tagged)
    (tagged / "new.conll").write_text("ada X\nsang X\n\nbela X\nrot X\nworks X\n")
    arguments = ("run=runs/one", "input=new.conll", "method=leave_one_out", "explain=person")
    assert run_command(monkeypatch, "explain", *arguments) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["tokens"] for row in rows] == [["ada", "sang"], ["bela", "rot", "works"]]
    assert [(word["text"], word["start"], word["end"]) for word in rows[1]["words"]] == [
        *[("bela", 0, 1), ("rot", 1, 2), ("works", 2, 3)]
    ]
    assert run_command(monkeypatch, "explain", *arguments, "output=why.conll") == 2
    assert "output=why.conll has no place for explanations." in capfd.readouterr().err


def test_scores_without_labels_and_tasks_without_scores_are_rejected():
    assert chosen_names(QuestionAnsweringTask(), "label") == [None]
    with pytest.raises(ConfigError, match="`explain` is 'all', but the scores of this task have no labels"):
        chosen_names(QuestionAnsweringTask(), "all")
    with pytest.raises(ConfigError, match=r"RecommendationTask has no scores to explain\. Classification, "):
        chosen_names(RecommendationTask(), "label")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "One text."}, "`text` is given, but this task reads text and pair. Give rows with these columns"),
        ({"input": "one.csv"}, "one.csv, line 1: no column 'pair' among "),
    ],
)
def test_an_embedding_of_one_text_is_rejected(here, given, message):
    (here / "one.csv").write_text("text\nOne text.\n")
    settings = ExplainConfig(run="mine", precision=PrecisionConfig(name="fp32"), **given)
    task = EmbeddingTask()
    with pytest.raises(FrameworkError, match=message):
        read_input_rows(settings, task, None, None, task.explained_fields)  # type: ignore[arg-type]


def test_text_that_is_not_read_is_reported(planted, monkeypatch, capfd):
    monkeypatch.chdir(planted)
    long = " ".join(["wa", "good"] * 40)
    assert run_command(monkeypatch, "explain", "run=mine", f"text=[wb bad,{long}]", "steps=8") == 0
    captured = capfd.readouterr()
    last = json.loads(captured.out.splitlines()[1])["words"][-1]["end"]
    assert "1 of 2 explanations are of texts that are longer than task.max_length allows." in captured.err
    assert (
        f"it does not read the characters {last + 1} to {len(long)} of `text` in row 2 of the output." in captured.err
    )


def test_training_rows_have_their_file_and_row(planted, monkeypatch, capfd):
    texts = "text=[wa good wb,wc wd bad]"
    rows = explained(planted, monkeypatch, capfd, texts, "training_rows=4", "method=gradient", "explain=1")
    lines = list(csv.DictReader((planted / "rows.csv").open(newline="")))
    for row, (side, sign, word) in zip(rows, (("for", 1, "good"), ("against", -1, "bad")), strict=True):
        strengths = [each["influence"] * sign for each in row["training_rows"][side]]
        assert len(strengths) == 4 and strengths == sorted(strengths, reverse=True) and strengths[-1] > 0
        for each in row["training_rows"][side]:
            assert (each["file"], each["place"]) == ("rows.csv", f"row {each['row']} (line {each['row'] + 1})")
            assert lines[each["row"] - 1] == {"text": each["text"], "label": PLANTED[word]}


def test_checkpoints_count_by_their_learning_rates(planted, monkeypatch):
    monkeypatch.chdir(planted)
    settings = ExplainConfig(run="mine", precision=PrecisionConfig(name="fp32"), text="wa good", training_rows=1)
    trained = open_trained(settings)
    training = open_training_rows(settings, trained)
    metrics = [json.loads(line) for line in (planted / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["optim/lr"] for row in metrics if "optim/lr" in row}
    assert [each.name for each in training.checkpoints] == ["step_00000030", "step_00000060"]
    assert list(training.learning_rates) == pytest.approx([rates[30], rates[60]])
    source = trained.task.build_source([Row(1, None, {"text": "wa good"})], trained.tokenizer)
    with open_inference(trained, 4096, "fp32") as inference:
        scores = [Explained(0, 1)]
        total = training.influences(trained, inference, source, scores)
        parts = [
            replace(training, checkpoints=[folder], learning_rates=[rate]).influences(
                trained, inference, source, scores
            )
            for folder, rate in ((training.checkpoints[0], rates[30]), (training.checkpoints[1], rates[60]))
        ]
        own = influences(inference, trained.tokenizer, source, scores, training.source, 2)
    assert np.allclose(total, parts[0] + parts[1]) and not np.allclose(parts[0], parts[1])
    assert np.allclose(parts[1], rates[60] * own, rtol=1e-4, atol=1e-9)


def test_training_rows_of_a_run_with_phases_are_those_of_its_newest_phase(planted, monkeypatch):
    monkeypatch.chdir(planted)
    phases = ["+phases.one={trainer: {max_steps: 4}}", "trainer.checkpoint_every_n_steps=2"]
    phases += ["+phases.two={optimizer: {lr: 5e-4}, data: {max_train_rows: 120}, trainer: {max_steps: 4}}"]
    assert run_command(monkeypatch, "train", *FINETUNE, "run.id=phases", "trainer.log_every_n_steps=1", *phases) == 0
    settings = ExplainConfig(run="phases", precision=PrecisionConfig(name="fp32"), text="wa good", training_rows=1)
    training = open_training_rows(settings, open_trained(settings))
    metrics = [json.loads(line) for line in (planted / "runs" / "phases" / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["optim/lr"] for row in metrics if "optim/lr" in row}
    assert [each.name for each in training.checkpoints] == ["step_00000006", "step_00000008"]
    assert list(training.learning_rates) == pytest.approx([rates[6], rates[8]]) and len(training.names) == 120


def test_training_rows_need_a_run_and_its_data(planted, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(planted)
    assert run_command(monkeypatch, "export", "run=mine", f"output={tmp_path / 'out'}", "compare=false") == 0
    capfd.readouterr()
    assert run_command(monkeypatch, "explain", f"run={tmp_path / 'out'}", "text=wa", "training_rows=5") == 2
    assert "is an export, which has no checkpoints and no training data." in capfd.readouterr().err
    assert run_command(monkeypatch, "explain", "run=mine", "text=wa", "training_rows=-1") == 2
    assert "`training_rows` is -1" in capfd.readouterr().err
    content = (planted / "rows.csv").read_text()
    (planted / "rows.csv").write_text(content.replace("good", "bad", 1))
    try:
        assert run_command(monkeypatch, "explain", "run=mine", "text=wa", "training_rows=5") == 2
        assert "is not the data of its training. Training rows are found by their position." in capfd.readouterr().err
    finally:
        (planted / "rows.csv").write_text(content)
    trained = open_trained(ExplainConfig(run="mine", precision=PrecisionConfig(name="fp32"), text="wa"))
    settings = ExplainConfig(run="mine", precision=PrecisionConfig(name="fp32"), text="wa", training_rows=5)
    with pytest.raises(ConfigError, match="the loss of EmbeddingTask compares all rows of a step with each other"):
        open_training_rows(settings, replace(trained, task=EmbeddingTask()))


def test_influences_of_two_ranks_equal_those_of_one(planted, monkeypatch, tmp_path):
    monkeypatch.chdir(planted)
    values = []
    for num_ranks in (1, 2):
        file = tmp_path / f"{num_ranks}.jsonl"
        overrides = ["run=mine", "text=[wa good,bad wb wc]", f"output={file}", "method=gradient", "training_rows=200"]
        ranks = Ranks(
            [*overrides, "micro_batch_tokens=128"], num_ranks, tmp_path / f"{num_ranks}.txt", command="explain"
        )
        assert ranks.wait(120) == [0] * num_ranks, ranks.read_output()
        rows = [json.loads(line)["training_rows"] for line in file.read_text().splitlines()]
        values.append([{each["row"]: each["influence"] for side in row.values() for each in side} for row in rows])
    for one, two in zip(*values, strict=True):
        assert len(one) > 100 and two == pytest.approx(one, rel=1e-4, abs=1e-6)
