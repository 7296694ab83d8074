"""Tests of the audit canaries as a command: repeated canaries are found, and those left out have uniform ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands.in_process import FINETUNE, TINY, audited, run_command, train_vocabulary, write_rows

WORDS = [f"{first}{vowel}{last}" for first in "bcdfghjk" for vowel in "aeiou" for last in "lmnprstvxz"]
CORPUS = [
    *("corpus=text", "corpus.sources.text.files=texts.txt", "corpus.sources.text.documents=blank_lines"),
    *("vocabulary=given", "vocabulary.path=tokenizer", "num_workers=0"),
]
PRETRAIN = [
    *("experiment=pretrain_demo", "strategy=single", "tokenizer.path=tokenizer", "data.store=store"),
    *("data.validation_fraction=0.05", "logger=none", "precision=fp32", "optimizer.lr=5e-3", "task.nsp=false"),
    *("task.sequence_length=16", "trainer.global_batch_size=32", "trainer.log_every_n_steps=50"),
    *TINY[1:3],
    *("model.hidden_size=64", "model.intermediate_size=64", "model.vocab_size=null"),
]
FEW = "audit.canaries.num_candidates=199"
MOST = float(np.log2(200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder with a store with canaries, the run `mine` on it, and the run `without`, which left them out."""
    folder = tmp_path_factory.mktemp("canaries")
    random = np.random.default_rng(7)
    texts = [" ".join(random.choice(WORDS, 8)) for _ in range(40)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    train_vocabulary([" ".join(WORDS)] * 3, 1000, folder / "tokenizer")
    canaries = ["corpus.canaries=20", "corpus.canary_repeats=[1,20]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("framework.data.preparation.card_files.draw_card", lambda *_: None)
        assert run_command(patch, "prepare", *CORPUS, "store=store", *canaries) == 0
        assert run_command(patch, "prepare", *CORPUS, "store=plain") == 0
        assert run_command(patch, "train", *PRETRAIN, "run.id=mine", "trainer.max_steps=60") == 0
        without = ["data.weights={canaries:0}", "run.id=without", "trainer.max_steps=30"]
        assert run_command(patch, "train", *PRETRAIN, *without) == 0
        assert run_command(patch, "export", "run=mine", "output=exported", "compare=false") == 0
    return folder


def parts_of(result: dict) -> dict[str, dict]:
    return {part["canaries"]: part for part in result["parts"]}


def test_repeated_canaries_have_a_high_exposure(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    assert run_command(monkeypatch, "audit", "run=mine", "audit=canaries", FEW, "fail_above=0.1") == 1
    assert "AuditError: the audit canaries has the rate" in capfd.readouterr().err
    result = audited(folder / "runs" / "mine", "canaries")
    parts = parts_of(result)
    repeated, single = parts["20 copies"], parts["1 copy"]
    assert repeated["mean_exposure"] > 5 and repeated["largest_exposure"] == pytest.approx(MOST, abs=1e-4)
    assert repeated["mean_exposure"] > single["mean_exposure"]
    assert repeated["chance"] < 1e-3 and repeated["among_first_1_percent"] > 0.5
    trained = parts["all trained"]
    assert trained["number"] == repeated["number"] + single["number"] == result["cases"]
    assert parts.get("not trained", {"number": 0})["number"] == 20 - trained["number"]
    assert result["rate"] == trained["among_first_1_percent"]
    both = [(part["number"], part["mean_exposure"]) for part in (repeated, single)]
    weighted = sum(number * mean for number, mean in both) / trained["number"]
    assert trained["mean_exposure"] == pytest.approx(weighted, abs=1e-4)
    stored = {
        each["prefix"] + " " + each["secret"] for each in json.loads(Path("store/store.json").read_text())["canaries"]
    }
    assert result["worst"] and {case["text"] for case in result["worst"]} <= stored


def test_canaries_that_were_left_out_have_uniform_ranks(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    assert run_command(monkeypatch, "audit", "run=without", "audit=canaries", FEW, "fail_above=0.1") == 0
    result = audited(folder / "runs" / "without", "canaries")
    control = parts_of(result)["not trained"]
    assert control["number"] == result["cases"] == 20
    # The mean of 20 exponential variables with mean log2(e), whose standard deviation is log2(e) / sqrt(20).
    assert abs(control["mean_exposure"] - np.log2(np.e)) < 3 * np.log2(np.e) / np.sqrt(20)
    assert control["chance"] > 0.01
    assert "data.weights.canaries of the run is 0, so no canary was trained" in result["notes"][0]
    capfd.readouterr()


def test_an_export_needs_the_store_and_its_card_has_the_result(folder, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(folder)
    assert run_command(monkeypatch, "audit", "run=mine", "audit=canaries", FEW) == 0
    given = ["audit.canaries.store=store", f"output={tmp_path / 'of_export'}"]
    assert run_command(monkeypatch, "audit", "run=exported", "audit=canaries", FEW, *given) == 0
    ours, theirs = (parts_of(audited(each, "canaries")) for each in (folder / "runs" / "mine", tmp_path / "of_export"))
    assert {name: ours[name] for name in ours if name.startswith("canary ")} == {
        name: theirs[name] for name in theirs if name.startswith("canary ")
    }
    assert theirs["all trained"]["number"] == 20
    assert run_command(monkeypatch, "export", "run=mine", f"output={tmp_path / 'again'}", "compare=false") == 0
    assert "| canaries | The mean exposure of " in (tmp_path / "again" / "README.md").read_text()
    capfd.readouterr()


def test_a_classifier_that_memorized_its_rows_has_a_high_exposure(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    random = np.random.default_rng(9)
    write_rows(Path("rows.csv"), [" ".join(random.choice(WORDS, 8)) for _ in range(40)], ["0", "1"] * 20)
    data = ["data.canaries=20", "data.canary_repeats=[1,20]", "trainer.max_epochs=null", "model.hidden_size=32"]
    long = ["trainer.max_steps=60", "trainer.global_batch_size=32", "optimizer.lr=5e-3", "run.id=tuned"]
    for sizes in (long, ["trainer.max_steps=1", "optimizer.lr=1e-12", "run.id=fresh"]):
        assert run_command(monkeypatch, "train", *FINETUNE, *data, *sizes) == 0
    facts = json.loads(Path("runs/tuned/data.json").read_text())["splits"]["train"]
    assert facts["notes"]["rows of canaries"] == "210"
    assert run_command(monkeypatch, "audit", "run=tuned", "audit=canaries", FEW) == 0
    parts = parts_of(audited(folder / "runs" / "tuned", "canaries"))
    assert parts["20 copies"]["mean_exposure"] > 4 and parts["20 copies"]["chance"] < 1e-3
    assert run_command(monkeypatch, "export", "run=tuned", "output=tuned_export", "compare=false") == 0
    assert run_command(monkeypatch, "audit", "run=tuned_export", "audit=canaries", FEW) == 0
    assert parts_of(audited(folder / "tuned_export_audit", "canaries")) == parts
    assert run_command(monkeypatch, "audit", "run=fresh", "audit=canaries", FEW) == 0
    fresh = parts_of(audited(folder / "runs" / "fresh", "canaries"))["all trained"]
    assert abs(fresh["mean_exposure"] - np.log2(np.e)) < 3 * np.log2(np.e) / np.sqrt(20)
    capfd.readouterr()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run=exported"], "does not record the token store that it was trained on. Its canaries are read from there."),
        (["run=mine", "audit.canaries.store=plain"], "the token store plain has no canaries."),
        (
            ["run=mine", "audit.canaries.num_candidates=9"],
            "audit.canaries.num_candidates is 9. It must be at least 99.",
        ),
        (["run=mine"], "has no trained masked-word head, and its training rows have no canaries."),
    ],
)
def test_bad_input_is_one_error_before_the_model_is_moved(folder, monkeypatch, capfd, settings, message):
    monkeypatch.chdir(folder)
    if "no trained masked-word head" in message:
        monkeypatch.setattr("framework.audits.canary_scores.masked_word_task", lambda *_: None)
    monkeypatch.setattr("framework.audit.open_inference", None)
    capfd.readouterr()
    assert run_command(monkeypatch, "audit", "audit=canaries", *settings) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
