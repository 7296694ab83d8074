"""Checks for every task: each folder of framework/tasks is tested, and must have its example here.

An example (tests/support/tasks/examples/NAME.py) writes some data and describes the input of prediction. The commands
do the rest, in processes as torchrun starts them.
"""

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tasks import commands
from tests.support.tasks.commands import FINE_TUNED, STEPS, call, example, jsonl, prepare, rows, succeed


@pytest.fixture(scope="module", params=FINE_TUNED)
def trained(request, tmp_path_factory) -> tuple[ModuleType, Path, list[str]]:
    """Run folder of a task that was trained in one process."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = prepare(request.param, folder)
    succeed(folder, "train", *overrides, "run.id=one")
    return example(request.param), folder, overrides


def test_every_task_has_an_example():
    assert {file.stem for file in Path(commands.__file__).parent.glob("examples/*.py")} == set(FINE_TUNED)
    assert "sequence_classification" in FINE_TUNED


def test_a_few_steps_lower_the_loss(trained):
    _, folder, _ = trained
    losses = [row["train/loss"] for row in rows(folder, "one") if "train/loss" in row]
    assert len(losses) == STEPS
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])


def test_a_run_reports_its_data(trained):
    _, folder, _ = trained
    run = folder / "runs" / "one"
    data = json.loads((run / "summary.json").read_text(encoding="utf-8"))["data"]
    assert {"train", "validation"} <= set(data["splits"])
    assert data["splits"]["train"]["read"] > 0 and data["splits"]["train"]["texts"] > 0
    assert all(next(iter(facts.values())) > 0 for facts in data["splits"].values())
    assert '<section id="data">' in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("num_ranks", "changes"),
    [(1, ["trainer.micro_batch_tokens=192"]), (2, ["strategy=ddp"]), (2, ["strategy=fsdp2"])],
    ids=["other_split", "ddp", "fsdp2"],
)
def test_loss_gradients_and_metrics_do_not_depend_on_the_split(trained, num_ranks, changes):
    _, folder, overrides = trained
    run_id = f"other_{num_ranks}_{changes[0].split('=')[1]}"
    succeed(folder, "train", *overrides, *changes, f"run.id={run_id}", num_ranks=num_ranks)
    for ours, theirs in zip(rows(folder, "one"), rows(folder, run_id), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_evaluation_gives_the_metrics_of_the_validation(trained, num_ranks):
    _, folder, _ = trained
    output = folder / "evaluated.json"
    analysis = folder / "runs" / "one" / "analysis" / "validation.json"
    kept = json.loads(analysis.read_text(encoding="utf-8"))
    analysis.unlink()
    (folder / "runs" / "one" / "report.html").unlink()
    succeed(folder, "evaluate", "run=one", "precision=fp32", f"output={output}", num_ranks=num_ranks)
    actual = json.loads(output.read_text(encoding="utf-8"))["metrics"]
    last = {key: value for key, value in rows(folder, "one")[-1].items() if key.startswith("val/")}
    assert {f"val/{key}": value for key, value in actual.items()} == pytest.approx(last, rel=1e-4, abs=1e-5)
    # The last validation of the training kept the same rows, without a pass of its own.
    found_again = json.loads(analysis.read_text(encoding="utf-8"))
    assert kept.pop("facts")["data fingerprint"] == found_again.pop("facts")["data fingerprint"]
    assert kept["rows"] > 0 and kept["lengths"]
    assert_same(kept, found_again)
    page = (folder / "runs" / "one" / "report.html").read_text(encoding="utf-8")
    assert '<section id="validation">' in page and '<section id="curves">' in page


def test_predictions_keep_rows_and_do_not_depend_on_processes(trained):
    task, folder, _ = trained
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task.ROWS), encoding="utf-8")
    for num_ranks in (1, 4):
        arguments = ("run=one", "input=rows.jsonl", "precision=fp32", f"output=predictions_{num_ranks}.jsonl")
        succeed(folder, "predict", *arguments, num_ranks=num_ranks)
    alone, shared = jsonl(folder / "predictions_1.jsonl"), jsonl(folder / "predictions_4.jsonl")
    assert [
        {key: prediction[key] for key in row} for prediction, row in zip(alone, task.ROWS, strict=True)
    ] == task.ROWS
    assert_same(alone, shared)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_the_task_of_a_run_cannot_be_changed_afterwards(trained, command):
    _, folder, _ = trained
    text = ("text=a",) if command == "predict" else ()
    code, output = call(folder, command, "run=one", *text, "task={max_length: 9}")
    assert code == 2 and "`task.max_length` is fixed by the training" in output, output


def test_an_export_gives_the_same_predictions(trained):
    task, folder, _ = trained
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task.ROWS), encoding="utf-8")
    succeed(folder, "export", "run=one", "output=exported")
    for run, output in (("one", "of_run.jsonl"), ("exported", "of_export.jsonl")):
        succeed(folder, "predict", f"run={run}", "input=rows.jsonl", "precision=fp32", f"output={output}")
    assert_same(jsonl(folder / "of_run.jsonl"), jsonl(folder / "of_export.jsonl"))


@pytest.mark.parametrize("name", FINE_TUNED)
def test_a_bad_row_is_named(name, tmp_path):
    overrides = prepare(name, tmp_path)
    example(name).write_refused(tmp_path)
    code, output = call(tmp_path, "train", *overrides, "run.id=refused")
    assert code == 2, output
    assert example(name).REFUSED[0] in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs" / "refused").exists()


def assert_same(ours: object, theirs: object) -> None:
    """Compares values; numbers only up to rounding, because micro-batches differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    else:
        assert ours == theirs
