"""Tests of exports of a tiny run: card, ONNX file, runs that start from it, and a head that no library knows."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from framework.exports import onnx_small
from tests.support.commands.in_process import FINETUNE, TEXTS, write_rows
from tests.support.exports.fake_hub import serving
from tests.support.exports.onnx_files import converted
from tests.support.models import peers


def card_of(folder: Path) -> tuple[dict[str, object], str]:
    """Returns the front matter and the text after it."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def cell(text: str, name: str) -> str:
    """Returns the second cell of a table's row, without escapes."""
    (value,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    return re.sub(r"\\(.)", r"\1", value)


def test_the_card_says_what_the_run_folder_knows(tmp_path, run):
    assert run("train", *FINETUNE, "seed=7", "optimizer.lr=0.002") == 0
    assert run("export", "run=mine") == 0
    folder = tmp_path / "runs" / "mine"
    front, text = card_of(folder / "export")
    assert front == {
        "library_name": "transformers",
        "tags": ["cloze", "modernbert", "sequence-classification"],
        "pipeline_tag": "text-classification",
    }
    summary = json.loads((folder / "summary.json").read_text())
    (start,) = json.loads((folder / "provenance.json").read_text())["starts"]
    assert cell(text, "accuracy") == f"{summary['last']['val/accuracy']:.4f}"
    assert cell(text, "loss (nats)") == f"{summary['last']['val/loss']:.4f}"
    assert cell(text, "data") == f"framework.data.examples.table.TableData, fingerprint {start['fingerprints']['data']}"
    assert cell(text, "started from") == "fresh weights"
    assert cell(text, "weights") == "step 2 of the run, as trained"
    assert [cell(text, name) for name in ("steps", "batch of a step", "seed", "learning rate", "precision")] == [
        "2 of 2", "4 sequences", "7", "0.002", "fp32",
    ]  # fmt: skip
    assert cell(text, "torch") == torch.__version__
    assert "Number of labels: 2. In the order of the scores: `0`, `1`." in text
    assert "Licence: not stated." in text
    assert "rows.csv" not in text and str(tmp_path) not in text and TEXTS[0] not in text


def test_an_export_is_uploaded_and_a_wrong_name_stops_it_before(tmp_path, run, capfd, monkeypatch):
    assert run("train", *FINETUNE) == 0
    assert run("export", "run=mine", "push=mine") == 2
    assert "A repository of the Hugging Face Hub is OWNER/NAME" in capfd.readouterr().err
    folder = tmp_path / "runs" / "mine" / "export"
    assert not folder.exists()
    with serving(monkeypatch) as hub:
        assert run("export", "run=mine", "push=me/mine", "compare=false") == 0
        assert f"uploaded to {hub.address}/me/mine" in capfd.readouterr().out
    assert hub.files["me/mine"] == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_weights_that_were_not_validated_have_no_metrics(tmp_path, run):
    assert run("train", *FINETUNE, "trainer.ema_decay=0.5", "trainer.keep_last=3") == 0
    metrics, origins = {}, {}
    for name, choice in {"ema": [], "raw": ["weights=raw"]}.items():
        assert run("export", "run=mine", f"output={name}", *choice) == 0
        _, text = card_of(tmp_path / name)
        metrics[name], origins[name] = "| accuracy |" in text, cell(text, "weights")
    assert metrics == {"ema": True, "raw": False}
    assert origins == {"ema": "step 2 of the run, their moving average", "raw": "step 2 of the run, as trained"}


def snippets(text: str, language: str, folder: Path) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [snippet.replace("path/to/this/folder", str(folder)) for snippet in found]


def test_the_examples_of_the_card_work(tmp_path, run, capfd):
    assert run("train", *FINETUNE) == 0
    assert run("export", "run=mine") == 0
    folder = tmp_path / "runs" / "mine" / "export"
    _, text = card_of(folder)
    names: dict[str, object] = {}
    for python in snippets(text, "python", folder):
        exec(compile(python, "card", "exec"), names)
    logits = names["outputs"].logits[0].detach()  # type: ignore[attr-defined]
    capfd.readouterr()
    (bash,) = snippets(text, "bash", folder)
    predict, _start = bash.strip().splitlines()
    assert predict.startswith("python -m framework.predict ")
    assert run("predict", *shlex.split(predict)[3:], "precision=fp32") == 0
    prediction = json.loads(capfd.readouterr().out)
    assert prediction["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    (of_pipeline,) = names["predictions"]  # type: ignore[attr-defined]
    assert (of_pipeline["label"], of_pipeline["score"]) == (
        prediction["label"],
        pytest.approx(prediction["probability"], abs=1e-5),
    )


def test_onnx_files_on_demand(tmp_path, run, capfd, monkeypatch):
    assert run("train", *FINETUNE) == 0
    assert run("export", "run=mine", "onnx=true") == 0
    folder = tmp_path / "runs" / "mine" / "export"
    fp32 = (folder / "onnx" / "model.onnx").read_bytes()
    _, text = card_of(folder)
    assert "`onnx/model.onnx` maps `input_ids`, `attention_mask` (int64) to `logits`" in text

    capfd.readouterr()
    # A second conversion would take seconds.
    monkeypatch.setattr(onnx_small, "write_onnx", lambda folder: converted(folder, fp32))
    assert run("export", "run=mine", "onnx=int8", "onnx_min_agreement=0") == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "model_int8.onnx" in line]
    rows = json.loads((tmp_path / "runs/mine/data.json").read_text())["splits"]["validation"]["rows"]
    assert re.search(rf"MB \(fp32: .*\), agreement with fp32 [01]\.\d+ on {rows} rows", line)
    assert run("export", "run=mine", "onnx=int4") == 2
    assert run("export", "run=mine", "onnx=int8", "onnx_min_agreement=1.5") == 2
    errors = capfd.readouterr().err
    assert "`onnx` is 'int4'. It must be" in errors
    assert "`onnx_min_agreement` is 1.5. It must be from 0 to 1." in errors


def test_a_head_from_outside_of_the_package_comes_back(tmp_path, run):
    foreign = "task._target_=tests.support.tasks.foreign_task.PrototypeTask"
    trust = "trust=[tests.support.tasks.foreign_task]"
    assert run("train", *FINETUNE, foreign) == 0
    assert run("export", "run=mine") == 2
    assert run("export", "run=mine", trust) == 0
    export = tmp_path / "runs" / "mine" / "export"
    assert isinstance(transformers.AutoModel.from_pretrained(export), transformers.ModernBertModel)
    front, text = card_of(export)
    assert "pipeline_tag" not in front
    assert "`cloze_heads.safetensors` holds `prototypes.weight`" in text
    found = {}
    for name in ("mine", "runs/mine/export"):
        data = [] if name == "mine" else ["data=table", "data.train=rows.csv", "data.validation_fraction=0.2"]
        assert run("evaluate", f"run={name}", "split=validation", "output=scores.json", trust, *data) == 0
        found[name] = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    # Micro-batches differ, since an export does not contain the steps of the run.
    assert found["runs/mine/export"] == pytest.approx(found["mine"], rel=1e-6)
    assert run("predict", "run=runs/mine/export", f"text={TEXTS[0]}", "output=out.jsonl", trust) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["label"] in ("0", "1")


def test_weights_from_the_hub_are_its_base_model(tmp_path, run, monkeypatch, from_weights):
    peers.peer("BertModel", "bert").save_pretrained(tmp_path / "cache")
    for file in (tmp_path / "tokenizer").iterdir():
        (tmp_path / "cache" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / "cache"))
    assert run("train", *from_weights, "init_from=somebody/encoder") == 0
    assert run("export", "run=second", "output=again") == 0
    front, text = card_of(tmp_path / "again")
    assert front["base_model"] == "somebody/encoder"
    assert cell(text, "started from") == "somebody/encoder"


def start_line(capfd) -> str:
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("weights from ")]
    return line


@pytest.fixture
def from_weights() -> list[str]:
    """Returns overrides of the other tests' run, with the encoder of the published weights."""
    kept = [override for override in FINETUNE if not override.startswith(("model.", "tokenizer.path"))]
    return [*kept, "model=from_weights", "tokenizer=from_weights", "run.id=second"]


def test_a_run_that_starts_from_another_says_what_of_the_head_is_new(tmp_path, run, capfd, from_weights):
    assert run("train", *FINETUNE) == 0
    assert "weights from" not in capfd.readouterr().out
    source = "runs/mine/checkpoints/step_00000002"
    assert run("train", *from_weights, "init_from=mine") == 0
    head = "transform.dense, transform.norm"
    assert start_line(capfd) == f"weights from {source}; head reused: {head}, classifier"

    # Other labels in the same number would make the scores meaningless.
    write_rows(tmp_path / "rows.csv", TEXTS, ["yes", "yes", "no", "no"] * 8)
    assert run("train", *from_weights, "init_from=mine", "run.id=third") == 0
    assert start_line(capfd) == (
        f"weights from {source}; head reused: {head}; head new: classifier; unused weights of the source: classifier"
    )


def test_a_published_fine_tuned_model_brings_its_head(tmp_path, run, capfd, from_weights):
    """Checks that scores follow the labels, whose order differs from that of the data."""
    labels = {"id2label": {0: "1", 1: "0"}, "label2id": {"1": 0, "0": 1}}
    peer = peers.peer("BertForSequenceClassification", "bert", vocab_size=99, **labels)
    peer.save_pretrained(tmp_path / "published")
    for file in (tmp_path / "tokenizer").iterdir():
        (tmp_path / "published" / file.name).write_bytes(file.read_bytes())
    assert run("train", *from_weights, "init_from=./published", "task.pooling=cls", "optimizer.lr=0") == 0
    assert start_line(capfd) == "weights from ./published; head reused: pooler.dense, classifier"
    assert run("export", "run=second", "output=again") == 0
    assert "base_model" not in card_of(tmp_path / "again")[0]
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert again.config.id2label == {0: "0", 1: "1"}
    assert torch.equal(again.classifier.weight, peer.classifier.weight.flip(0))
    assert torch.equal(again.bert.pooler.dense.weight, peer.bert.pooler.dense.weight)
