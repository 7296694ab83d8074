"""Tests of the Python interface: commands called in this process, and trained models that predict and embed."""

import json
import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import framework.evaluate
import framework.export
import framework.predict
import framework.train
from framework import load
from framework.batch import PackedBatch
from framework.data.examples.table import TableData
from framework.errors import CheckpointError, ConfigError, DataError, DistributedError
from framework.inference.input_rows import read_python_rows
from tests.support.tasks.commands import example, prepare

SMALL = ("trainer.max_steps=2", "trainer.val_every_n_steps=2", "trainer.report_examples=0", "run.id=one")


@dataclass(frozen=True)
class Trained:
    """A run of a task's example, trained by `framework.train.run`.

    Attributes:
        folder: Run folder.
        returned: Result of the call, made in the folder above `runs`.
        before: State of this process before the call.
        after: State of this process after it.
    """

    folder: Path
    returned: Path
    before: dict[str, object]
    after: dict[str, object]


def process_state() -> dict[str, object]:
    """Returns the state of this process that a command may change while it runs and must restore."""
    return {
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger("framework").level,
        "hydra": (GlobalHydra.instance().is_initialized(), HydraConfig.initialized()),
        "environment": dict(os.environ),
        "excepthook": sys.excepthook,
        "arguments": list(sys.argv),
        "folder": Path.cwd(),
    }


def train_small(task: str, folder: Path, *overrides: str) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command_line = [*prepare(task, folder), *SMALL, *overrides]
        before = process_state()
        returned = framework.train.run(command_line)
        return Trained(folder / "runs" / "one", returned, before, process_state())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Trained:
    return train_small("sequence_classification", tmp_path_factory.mktemp("classifier"), "strategy=ddp")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory, classifier) -> Trained:
    """Runs the second training of this process in a thread, as some notebooks do."""
    del classifier
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(train_small, "embedding", tmp_path_factory.mktemp("embedder")).result()


@pytest.mark.parametrize("name", ["classifier", "embedder"])
def test_training_returns_the_run_folder_and_leaves_the_process_as_it_was(name, request):
    trained = request.getfixturevalue(name)
    assert trained.returned == Path("runs/one")
    assert json.loads((trained.folder / "summary.json").read_text())["ended"] == "finished"
    assert trained.after == trained.before


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["trainer.max_stepz=3"], ConfigError, "Did you mean `max_steps`"),
        (["strategy=fsdp3"], ConfigError, "Available options in 'strategy'"),
        (["--multirun"], ConfigError, "`--multirun` is an option of the command line"),
        (["seed=1,2"], ConfigError, "seed"),
        (["data.train=nowhere.csv"], DataError, "nowhere.csv cannot be read"),
    ],
)
def test_a_command_from_python_raises(overrides, error, message, tmp_path, monkeypatch):
    given = [*prepare("sequence_classification", tmp_path), *SMALL, *overrides]
    monkeypatch.chdir(tmp_path)
    before = process_state()
    with pytest.raises(error, match=message):
        framework.train.run(given)
    assert process_state() == before and not (tmp_path / "runs").exists()


def test_evaluation_and_export_return_their_results(classifier, monkeypatch, capsys):
    monkeypatch.chdir(classifier.folder.parents[1])
    run = classifier.folder
    values = framework.evaluate.run([f"run={run}", "split=validation", "report=false", "precision=fp32"])
    summary = json.loads((run / "summary.json").read_text())["last"]
    assert values["accuracy"] == pytest.approx(summary["val/accuracy"])
    folder = framework.export.run([f"run={run}", "compare=false"])
    assert folder == run / "export" and (folder / "model.safetensors").is_file()
    capsys.readouterr()


def predicted_by_the_command(run: Path, folder: Path, rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Writes rows as JSONL, and returns the lines that `framework.predict` writes for them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = folder / "predicted.jsonl"
    framework.predict.run([f"run={run}", f"input={folder / 'rows.jsonl'}", f"output={output}", "precision=fp32"])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "task"), [("classifier", "sequence_classification"), ("embedder", "embedding")])
def test_a_loaded_model_predicts_as_the_command_does(name, task, request, tmp_path):
    run = request.getfixturevalue(name).folder
    rows = example(task).ROWS
    loaded = load(str(run), precision="fp32")
    expected = predicted_by_the_command(run, tmp_path, rows)
    assert len(expected) == len(rows) == 3
    assert loaded.predict(rows) == expected
    texts = [row["text"] for row in rows]
    assert loaded.predict(texts) == expected
    assert loaded.predict(texts[:1]) == loaded.predict(texts[0]) and loaded.predict([]) == []


def test_embeddings_are_those_of_the_command(embedder, tmp_path):
    rows = example("embedding").ROWS
    loaded = load(str(embedder.folder), precision="fp32")
    vectors = loaded.embed([row["text"] for row in rows])
    expected = predicted_by_the_command(embedder.folder, tmp_path, rows)
    assert vectors.dtype == np.float32 and vectors.tolist() == [row["embedding"] for row in expected]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0)
    assert loaded.embed([]).shape == (0, 32)


def test_embeddings_of_another_task_are_the_pooled_encoder(classifier):
    loaded = load(str(classifier.folder), precision="fp32")
    text = "a good film of 1991"
    tokenizer, encoder = loaded.tokenizer, loaded.model.encoder
    ids = torch.tensor([tokenizer.cls_id, *tokenizer.encode_batch([text])[0].tolist(), tokenizer.sep_id])
    batch = PackedBatch(
        input_ids=ids,
        position_ids=torch.arange(len(ids)),
        token_type_ids=torch.zeros_like(ids),
        cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
        sequence_ids=torch.zeros(1, dtype=torch.int64),
        lengths=(len(ids),),
        max_seqlen=len(ids),
        num_sequences=1,
        num_tokens=len(ids),
        targets={},
        counts={},
    )
    with torch.inference_mode():
        hidden = encoder.encode(encoder.embed(batch, None), batch, None).float()
    assert loaded.embed([text], pooling="mean")[0] == pytest.approx(hidden.mean(dim=0).numpy(), abs=1e-5)
    assert loaded.embed([text], pooling="cls")[0] == pytest.approx(hidden[0].numpy(), abs=1e-5)
    unit = loaded.embed([text], pooling="mean", normalize=True)
    assert np.linalg.norm(unit) == pytest.approx(1.0, abs=1e-5)


def test_an_export_and_a_checkpoint_are_loaded_too(classifier, monkeypatch):
    monkeypatch.chdir(classifier.folder.parents[1])
    export = framework.export.run(["run=one", "output=exported", "compare=false"])
    checkpoint = max((classifier.folder / "checkpoints").iterdir())
    texts = ["a good film", "a dull film of 1991"]
    expected = load("one", precision="fp32").predict(texts)
    assert load(str(export), precision="fp32").predict(texts) == expected
    assert load(str(checkpoint), precision="fp32").predict(texts) == expected


def test_a_published_model_of_others_embeds_and_predicts_nothing(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(classifier.folder.parents[1])
    published = framework.export.run(["run=one", f"output={tmp_path / 'published'}", "compare=false"])
    (published / "cloze.json").unlink()
    loaded = load(str(published), precision="fp32")
    texts = ["a good film", "a dull film of 1991"]
    ours = load("one", precision="fp32").embed(texts, pooling="mean")
    assert loaded.embed(texts, pooling="mean") == pytest.approx(ours, abs=1e-6)
    with pytest.raises(CheckpointError, match="does not record the task that it was trained for"):
        loaded.predict(texts)
    with pytest.raises(CheckpointError, match="does not record the task that it was trained for"):
        framework.predict.run([f"run={published}", "text=good"])


def test_bad_rows_raise_or_are_answered_in_order(classifier):
    loaded = load(str(classifier.folder), precision="fp32")
    rows = [{"text": "good"}, {"texts": "bad"}, {"text": None}, {"text": "poor"}]
    with pytest.raises(DataError, match="input, row 2: no column 'text'"):
        loaded.predict(rows)
    answers = loaded.predict(rows, on_bad_row="skip")
    assert [answer["label"] is None for answer in answers] == [False, True, True, False]
    assert "row 2: no column 'text'" in answers[1]["error"] and "row 3" in answers[2]["error"]
    assert answers[3] == loaded.predict([{"text": "poor"}])[0]


def test_rows_may_have_the_columns_of_training(classifier):
    loaded = load(str(classifier.folder), precision="fp32")
    layout = TableData(train="train.csv", text_column="sentence")
    for row in ({"sentence": "good"}, {"text": "good"}):
        requests = read_python_rows([row], loaded.task, loaded.tokenizer, "error", layout)
        assert requests[0].row.values == {"text": "good"} and requests[0].kept == row


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("./nowhere", {}, "./nowhere does not exist"),
        ("one", {"precision": "int8"}, "`precision.name` is 'int8'"),
        ("one", {"weights": "best"}, "`weights` is 'best'"),
        ("one", {"task": {"max_length": 3}}, "`task.max_length` is fixed by the training"),
    ],
)
def test_load_raises(classifier, source, arguments, message, monkeypatch):
    monkeypatch.chdir(classifier.folder.parents[1])
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load(source, **arguments)


def test_load_serves_one_process(classifier, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistributedError, match="one of 2 processes"):
        load(str(classifier.folder))


def test_import_is_cheap_and_a_bad_variable_of_a_launcher_raises_and_ends_nothing():
    program = (
        "import sys; hook = sys.excepthook; import framework\nfrom framework.errors import DistributedError\n"
        "try:\n    framework.load\nexcept DistributedError as error:\n    assert 'RANK' in str(error)\n"
        "else:\n    raise SystemExit(3)\n"
        "assert not {'torch', 'hydra', 'lightning'} & set(sys.modules) and sys.excepthook is hook"
    )
    environment = {**os.environ, "RANK": "first", "WORLD_SIZE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def predict_in_new_process(folder: Path, run: str, unused: set[str]) -> dict[str, object]:
    """Predicts a text by the command line, and checks that modules are not imported."""
    program = (
        "import sys\nfrom framework.config.command import start\n"
        f"sys.argv[1:] = ['run={run}', 'text=a good film', 'precision=fp32']\n"
        "try:\n    start('framework.predict')\n"
        "except SystemExit as leaving:\n    assert not leaving.code\n"
        f"unused = {unused}\n"
        "assert not unused & set(sys.modules), unused & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=False, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_prediction_imports_only_what_it_uses(classifier, monkeypatch):
    folder = classifier.folder.parents[1]
    monkeypatch.chdir(folder)
    unused = {"lightning", "torchmetrics", "scipy", "transformers", "matplotlib", "torch._dynamo"}
    from_run = predict_in_new_process(folder, "one", unused)
    framework.export.run(["run=one", "output=light", "compare=false"])
    sharding = {"torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "sympy"}
    from_export = predict_in_new_process(folder, "./light", unused | sharding | {"framework.optim.combined"})
    assert from_run == from_export and from_run["text"] == "a good film"
