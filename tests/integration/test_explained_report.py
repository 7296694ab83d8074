"""Tests of the explanations in the report of a run: what they find, under every strategy, and what they leave alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands.in_process import FINETUNE, run_command, train_vocabulary
from tests.support.processes.ranks import Ranks

FILLERS = [f"w{letter}" for letter in "abcdefghij"]
SIZES = ["trainer.max_steps=40", "trainer.global_batch_size=16", "optimizer.lr=0.005", "data.validation_fraction=0.3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder with 120 rows, of which one word decides the label; some labels are wrong."""
    path = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(0)
    rows = []
    for number in range(120):
        words = [FILLERS[index] for index in random.integers(0, len(FILLERS), 5)]
        words.insert(int(random.integers(0, 6)), ("good", "bad")[number % 2])
        rows.append((" ".join(words), str((number + (number % 11 == 0)) % 2)))
    train_vocabulary([text for text, _ in rows], 60, path / "tokenizer")
    lines = [f"{text},{('yes', 'no')[int(label)]}" for text, label in rows]
    (path / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def explained(run: Path) -> dict:
    return json.loads((run / "analysis" / "validation.json").read_text(encoding="utf-8"))


def train(folder: Path, monkeypatch, run_id: str, *overrides: str) -> Path:
    monkeypatch.chdir(folder)
    assert run_command(monkeypatch, "train", *FINETUNE, *SIZES, f"run.id={run_id}", *overrides) == 0
    return folder / "runs" / run_id


def test_the_word_that_decides_leads_its_class_and_is_coloured(folder, monkeypatch, rendered):
    run = train(folder, monkeypatch, "shown")
    analysis = explained(run)
    found = analysis["explanations"]
    assert {name: found["words"][name]["raise"][0][0] for name in ("yes", "no")} == {"yes": "good", "no": "bad"}
    assert found["rows"] == 30 and sum(table["rows"] for table in found["words"].values()) == 30
    mean, error = found["faithfulness"]["gain"]
    assert mean > 3 * error
    assert analysis["examples"]
    for example, values in zip(analysis["examples"], found["examples"], strict=True):
        assert [example["text"][start:end] for start, end, _ in values["words"]] == example["text"].split()
        start, end, _ = max(values["words"], key=lambda word: word[2])
        assert example["text"][start:end] == {"yes": "good", "no": "bad"}[values["explained"]]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'title="+' in page and "Words that decide" in page and "It is no reason for a prediction" in page
    names = {path.stem for path in (run / "plots").glob("*.png")}
    assert {
        f"validation_{name}" for name in ("comprehensiveness", "sufficiency", "attention", "attention_heads")
    } <= names


def test_explanations_change_neither_metrics_nor_weights(folder, monkeypatch):
    with_them, without = (
        train(folder, monkeypatch, f"run{number}", f"trainer.report_explanations={number}", "trainer.ema_decay=0.9")
        for number in (9, 0)
    )
    assert (with_them / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()
    shards = [sorted((run / "checkpoints" / "step_00000040").glob("*.distcp")) for run in (with_them, without)]
    assert shards[0] and [each.read_bytes() for each in shards[0]] == [each.read_bytes() for each in shards[1]]
    assert explained(with_them)["explanations"]["rows"] == 9
    assert "explanations" not in explained(without)
    pages = [(run / "report.html").read_text(encoding="utf-8") for run in (with_them, without)]
    assert ['<section id="validation-explanations">' in page for page in pages] == [True, False]


def test_a_report_without_texts_has_no_words(folder, monkeypatch):
    run = train(folder, monkeypatch, "silent", "trainer.report_examples=0")
    found = explained(run)["explanations"]
    assert found["words"] == {} and found["examples"] == [] and found["attention"] is None
    assert found["faithfulness"]["rows"] == 30
    written = [path.read_text(encoding="utf-8") for path in (run / "analysis").iterdir()]
    page = (run / "report.html").read_text(encoding="utf-8")
    shown = re.sub(r"base64,[^\"]*", "", page)
    assert not any(word in re.split(r"\W+", text) for text in [*written, shown] for word in ("good", "bad", *FILLERS))
    assert "Do these words decide?" in page


@pytest.mark.parametrize("strategy", [("ddp", "trainer.ema_decay=0.5"), ("fsdp2", "precision=bf16")])
def test_two_ranks_explain_what_one_explains(folder, monkeypatch, tmp_path, strategy):
    """Compares the explanations at the end of a run with those of its checkpoint in a single process."""
    run_id = "".join(strategy).replace("=", "").replace(".", "")
    overrides = [*FINETUNE, *SIZES, f"run.id={run_id}", f"strategy={strategy[0]}", *strategy[1:]]
    ranks = Ranks(overrides, 2, tmp_path / "train.txt", folder=folder)
    assert ranks.wait(200) == [0, 0], ranks.read_output()
    run = folder / "runs" / run_id
    shared = explained(run)["explanations"]
    monkeypatch.chdir(folder)
    precision = next((each for each in strategy if each.startswith("precision=")), "precision=fp32")
    assert run_command(monkeypatch, "evaluate", f"run={run_id}", "split=validation", precision) == 0
    alone = explained(run)["explanations"]
    tolerance = 2e-3 if precision == "precision=fp32" else 0.1
    assert shared["rows"] == alone["rows"] and shared["attention"]["tokens"] == alone["attention"]["tokens"]
    assert np.allclose(shared["faithfulness"]["gain"], alone["faithfulness"]["gain"], atol=tolerance)
    for one, other in zip(shared["examples"], alone["examples"], strict=True):
        assert np.allclose(one["words"], other["words"], atol=tolerance)
    assert shared["words"].keys() == alone["words"].keys()


def test_tensor_parallelism_leaves_explanations_out_with_a_reason(folder, tmp_path):
    ranks = Ranks([*FINETUNE, *SIZES, "run.id=split", "strategy=tp"], 2, tmp_path / "train.txt", folder=folder)
    assert ranks.wait(200) == [0, 0], ranks.read_output()
    run = folder / "runs" / "split"
    assert "Tensor parallelism" in explained(run)["explanations"]["omitted"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Left out. Tensor parallelism" in page and "python -m framework.evaluate run=runs/split" in page
