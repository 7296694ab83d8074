"""Tests of `framework.evaluate`: new files need only a name, sweep runs only an id; another tokenizer is rejected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands.in_process import run_command
from tests.support.tasks.commands import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder with a classification run in a sweep, its export, and no file of its training."""
    folder = tmp_path_factory.mktemp("classified")
    overrides = [*prepare("sequence_classification", folder), "run.dir=runs/sweep", "run.id=job", "trainer.max_steps=6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *overrides) == 0
        assert run_command(patch, "export", "run=job", "output=exported") == 0
    lines = (folder / "rows.csv").read_text(encoding="utf-8").splitlines()
    (folder / "new.csv").write_text("\n".join([lines[0], *lines[1:4]]) + "\n", encoding="utf-8")
    (folder / "rows.csv").unlink()
    return folder


@pytest.fixture
def call(folder, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(folder)

    def run(name: str, *overrides: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, name, *overrides), *capfd.readouterr()

    return run


def test_a_new_file_is_evaluated_by_its_name(folder, call):
    scores = {}
    for run in ("job", "exported"):
        code, out, err = call("evaluate", f"run={run}", "data.test=new.csv", "output=scores.json", "precision=fp32")
        assert code == 0, err
        assert f"{run} on test, 3 sequences" in out
        scores[run] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["job"]["split"] == "test" and sum(row["sequences"] for row in scores["job"]["classes"]) == 3
    assert scores["job"]["metrics"] == pytest.approx(scores["exported"]["metrics"], rel=1e-5)
    # Computed by hand: the fraction of rows whose predicted label equals the label in the file.
    code, out, err = call("predict", "run=job", "input=new.csv", "keep_columns=[label]", "precision=fp32")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 3, err
    accuracy = sum(row["label"] == row["input_label"] for row in rows) / 3
    assert scores["job"]["metrics"]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=job", "data.test=nowhere.csv"], "nowhere.csv cannot be read"),
        (["run=job", "data.tset=new.csv"], "unknown config key `data.tset`. Did you mean `test`?"),
        (["run=exported"], "is an export, which contains no data. Give a file, for example data.test=FILE"),
        (
            ["run=job", "data.test=new.csv", "output=nowhere/scores.json"],
            "output=nowhere/scores.json cannot be written",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_error(call, overrides, message):
    code, _, err = call("evaluate", *overrides)
    assert code == 2 and message in err and err.count("\n") == 1


def test_an_export_keeps_no_path_of_its_data(folder):
    record = json.loads((folder / "exported" / "cloze.json").read_text(encoding="utf-8"))["task"]["data"]
    assert record["label_column"] == "label" and record["train"] == "" and "rows.csv" not in json.dumps(record)


def test_an_id_of_two_runs_is_refused(folder, call):
    shutil.copytree(folder / "runs" / "sweep", folder / "runs" / "again")
    try:
        code, _, err = call("predict", "run=job", "text=a")
    finally:
        shutil.rmtree(folder / "runs" / "again")
    assert code == 2 and "job is the id of 2 runs: runs/again/job, runs/sweep/job" in err


@pytest.mark.parametrize(
    ("run", "message"), [("job", "has fingerprint"), ("exported", "tokenizer.json has changed since its export")]
)
def test_another_tokenizer_is_noticed(folder, call, run, message):
    home = folder / "exported" if run == "exported" else folder / "runs" / "sweep" / "job" / "tokenizer"
    file = home / "tokenizer.json"
    before = file.read_bytes()
    content = json.loads(before)
    content["model"]["vocab"]["another"] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        code, _, err = call("predict", f"run={run}", "text=another")
    finally:
        file.write_bytes(before)
    assert code == 2 and message in err and err.count("\n") == 1
