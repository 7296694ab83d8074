"""A run that was interrupted anywhere and started again has the files of an uninterrupted run."""

import json
import shutil
from pathlib import Path

import pytest

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from tests.support.training.cuts import CutAt, CutError
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=9, log_every_n_steps=1, validate_every_n_steps=4, checkpoint_every_n_steps=2)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a complete run."""
    run_folder = tmp_path_factory.mktemp("uninterrupted")
    train(run_folder, cadence=CADENCE)
    return run_folder


@pytest.mark.parametrize(
    ("hook", "step", "resumes_from"),
    [
        ("on_train_batch_start", 5, 4),
        ("on_train_batch_end", 4, 2),  # the checkpoint of step 4 waits for its validation
        ("on_validation_start", 4, 2),
        ("on_validation_end", 4, 4),
        ("on_validation_start", 9, 8),
    ],
)
def test_the_metrics_file_equals_that_of_the_uninterrupted_run(
    hook: str, step: int, resumes_from: int, uninterrupted: Path, tmp_path: Path
):
    with pytest.raises(CutError):
        train(tmp_path, cadence=CADENCE, extra_callbacks=(CutAt(hook, step),))
    checkpoint = newest_complete(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.name == f"step_{resumes_from:08d}"
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 77, "train/lo')
    train(tmp_path, cadence=CADENCE, checkpoint=checkpoint)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "perf.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, uninterrupted))
    assert ours["ended"] == "finished"
    assert ours["tokens"] == theirs["tokens"] == ours["last"]["train/tokens"]
    assert ours["best"] == theirs["best"]


def test_wall_seconds_count_the_earlier_starts(uninterrupted: Path, tmp_path: Path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    checkpoint = tmp_path / "checkpoints" / "step_00000008"
    state = json.loads((checkpoint / "state.json").read_text())
    state["callbacks"]["Throughput"]["wall_seconds"] = 1000.0
    size = len(text := json.dumps(state))
    (checkpoint / "state.json").write_text(text)
    complete = json.loads((checkpoint / "COMPLETE").read_text())
    complete["file_sizes_bytes"]["state.json"] = size
    del complete["blake2b"]
    (checkpoint / "COMPLETE").write_text(json.dumps(complete))
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000009")
    train(tmp_path, cadence=CADENCE, checkpoint=checkpoint)
    assert 1000.0 < json.loads((tmp_path / "summary.json").read_text())["wall_seconds"] < 1100.0


def test_a_run_killed_after_its_last_checkpoint_gets_its_summary_and_plots_without_a_step(
    uninterrupted: Path, tmp_path: Path
):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "plots")
    train(tmp_path, cadence=CADENCE, checkpoint=tmp_path / "checkpoints" / "step_00000009")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, uninterrupted))
    for name in ("ended", "steps", "tokens", "tokens_per_second", "best"):
        assert ours[name] == theirs[name]
    assert (tmp_path / "plots" / "loss.png").exists()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_fewer_rows_are_logged_than_steps_and_the_last_step_always(tmp_path: Path):
    cadence = Cadence(max_steps=5, log_every_n_steps=2, validate_every_n_steps=3)
    train(tmp_path, cadence=cadence)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kinds = [(row["step"], "train/loss" in row, "val/loss" in row) for row in rows]
    assert kinds == [(2, True, False), (3, False, True), (4, True, False), (5, True, True)]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]
