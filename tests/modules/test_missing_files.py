"""Missing files of a run at its resume: rows before the checkpoint, checkpoints, and the messages about them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from framework.callbacks.cadence import Cadence
from framework.checkpoint.integrity import mark_complete
from framework.checkpoint.layout import mark_damaged
from framework.config.run_config import RunConfig
from framework.errors import CheckpointError
from framework.optim.schedules import Linear
from framework.runs.folder import find_run_folder, write_start
from framework.runs.record_files import begin_records
from tests.support.training.toy_run import build_module, train

CADENCE = Cadence(max_steps=4, log_every_n_steps=1, validate_every_n_steps=3, checkpoint_every_n_steps=2)
CONFIG: dict[str, Any] = {"seed": 0, "trainer": {"max_steps": 4}}


class KilledAfter(pl.Callback):
    """Ends the run after a step, before anything of that step is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run folder with checkpoints after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    train(folder, cadence=CADENCE)
    start = {"fingerprints": {}}
    write_start(find_run_folder(RunConfig(id="x", dir=str(folder.parent)), [CONFIG]), CONFIG, start, {})
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Returns a copy of it, with one checkpoint to resume from at step 2."""
    shutil.copytree(whole, tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "checkpoints" / "step_00000004")
    return tmp_path / "x"


def state_of(run: Path, step: int) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())


def resume(run: Path, accepts: bool = False) -> None:
    train(run, cadence=CADENCE, checkpoint=run / "checkpoints" / "step_00000002", accepts_missing_rows=accepts)


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_records_count_and_hash_of_the_rows_up_to_its_step(step: int, whole: Path):
    for name in ("metrics.jsonl", "perf.jsonl"):
        lines = [line for line in (whole / name).read_bytes().splitlines(True) if json.loads(line)["step"] <= step]
        digest = hashlib.blake2b(b"".join(lines), digest_size=16).hexdigest()
        assert state_of(whole, step)["callbacks"]["RunLog"][name] == {"rows": len(lines), "blake2b": digest}


def without_line(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:number] + lines[number + 1 :]


DAMAGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "emptied": (lambda lines: [], "holds 0 rows up to step 2, but 2 were written"),
    "cut": (lambda lines: lines[:1], "holds 1 rows up to step 2, but 2 were written"),
    "torn": (lambda lines: [lines[0], lines[1][:9]], "holds 1 rows up to step 2, but 2 were written"),
    "first row lost": (without_line(0), "holds 1 rows up to step 2, but 2 were written"),
    "row of the step lost": (without_line(1), "holds 1 rows up to step 2, but 2 were written"),
    "row doubled": (lambda lines: [lines[0], *lines], "holds 3 rows up to step 2, but 2 were written"),
    "value changed": (
        lambda lines: [lines[0].replace(b"train/loss", b"train/lose"), *lines[1:]],
        "holds other rows up to step 2 than were written",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_missing_rows_before_the_checkpoint_are_an_error_that_changes_nothing(damage: str, run: Path):
    change, words = DAMAGES[damage]
    rows = run / "metrics.jsonl"
    rows.write_bytes(content := b"".join(change(rows.read_bytes().splitlines(True))))
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl {words} .*run\.missing=accept"):
        resume(run)
    assert rows.read_bytes() == content


def test_a_deleted_file_is_detected_and_accepted_if_requested(run: Path, whole: Path, capsys):
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="holds 0 rows up to step 2, but 2 were written"):
        resume(run)
    resume(run, accepts=True)
    assert (
        "metrics.jsonl holds 0 rows up to step 2, but 2 were written. Training continues with"
        in capsys.readouterr().out
    )
    assert (run / "metrics.jsonl").read_bytes() == b"".join(
        (whole / "metrics.jsonl").read_bytes().splitlines(True)[2:]
    ), "the following rows are those of the uninterrupted run"
    assert state_of(run, 4)["callbacks"]["RunLog"]["metrics.jsonl"]["rows"] == 2


def test_differences_in_timing_rows_are_only_reported(run: Path, whole: Path, capsys):
    (run / "perf.jsonl").write_text("")
    resume(run)
    assert "perf.jsonl holds 0 rows up to step 2, but 2 were written" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_checkpoint_of_a_version_that_recorded_no_rows_is_resumed(run: Path, whole: Path):
    folder = run / "checkpoints" / "step_00000002"
    state = state_of(run, 2)
    del state["callbacks"]["RunLog"], state["schedule"]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "COMPLETE").unlink()
    mark_complete(folder)
    (run / "progress.json").unlink()
    resume(run)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_the_checkpoint_of_another_run_is_not_compared_with_the_rows(run: Path, tmp_path: Path, whole: Path):
    train(tmp_path / "y", cadence=CADENCE, checkpoint=run / "checkpoints" / "step_00000002")
    rows = (whole / "metrics.jsonl").read_bytes().splitlines(True)[2:]
    assert (tmp_path / "y" / "metrics.jsonl").read_bytes() == b"".join(rows)


def find(run: Path, **settings: str) -> Any:
    return find_run_folder(RunConfig(id="x", dir=str(run.parent), **settings), [CONFIG])


@pytest.mark.parametrize(
    "also_lost", [(), ("progress.json",), ("progress.json", "summary.json")], ids=["", "progress", "progress, summary"]
)
def test_a_run_with_missing_checkpoints_does_not_start_again_unless_requested(
    also_lost: tuple[str, ...], run: Path, capsys
):
    shutil.rmtree(run / "checkpoints")
    for name in also_lost:
        (run / name).unlink()
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match=r"up to step 4, but .*contains no checkpoint\..*run\.missing=accept"):
        find(run)
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    folder = find(run, missing="accept")
    assert (folder.checkpoint, folder.lost_step) == (None, 4)
    begin_records(folder.path, folder.checkpoint, folder.lost_step, folder.is_new)
    assert "again at step 0: its checkpoints up to step 4 are missing." in capsys.readouterr().out
    assert find(run).lost_step is None, "a restarted run has lost nothing at the next start"


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_reports_it(tmp_path: Path, capsys):
    run = tmp_path / "x"
    run.mkdir()
    begin_records(run, None, None, is_new=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(RuntimeError, match="killed"):
        train(run, cadence=CADENCE, extra_callbacks=(KilledAfter(1),))
    write_start(find(run), CONFIG, {"fingerprints": {}}, {})
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1 and not list(run.glob("checkpoints/*"))
    (run / "summary.json").unlink()  # a killed run writes none
    folder = find(run)
    assert (folder.checkpoint, folder.lost_step) == (None, None)
    begin_records(folder.path, None, None, is_new=False)
    assert "again at step 0: it has no checkpoint yet." in capsys.readouterr().out


def test_a_missing_newest_checkpoint_is_reported_but_not_one_marked_as_damaged(run: Path, whole: Path, capsys):
    folder = find(run)
    assert folder.checkpoint.name == "step_00000002" and folder.lost_step == 4
    begin_records(folder.path, folder.checkpoint, folder.lost_step, folder.is_new)
    assert "step 4, is missing. The steps after step_00000002 are trained again." in capsys.readouterr().out
    shutil.copytree(whole / "checkpoints" / "step_00000004", run / "checkpoints" / "step_00000004")
    assert find(run).lost_step is None
    mark_damaged(run / "checkpoints" / "step_00000004")
    assert find(run).checkpoint.name == "step_00000002" and find(run).lost_step is None


@pytest.mark.parametrize(("max_steps", "step"), [(4, 2), (8, 4)])
def test_a_resume_reports_its_step_and_how_a_longer_run_changes_the_learning_rate(
    max_steps: int, step: int, tmp_path: Path, capsys
):
    def start(last: int, checkpoint: Path | None = None) -> str:
        module = build_module(lr=1e-2)
        module.runner.schedule = Linear(last)
        cadence = Cadence(max_steps=last, log_every_n_steps=1, checkpoint_every_n_steps=2)
        train(tmp_path, cadence=cadence, module=module, checkpoint=checkpoint)
        return capsys.readouterr().out

    assert "Resuming" not in start(4)
    checkpoint = tmp_path / "checkpoints" / f"step_{step:08d}"
    for newer in set((tmp_path / "checkpoints").iterdir()) - {checkpoint}:
        shutil.rmtree(newer)
    said = start(max_steps, checkpoint)
    assert f"Resuming from step {step} of {max_steps} ({checkpoint})." in said
    # Linear: 1 - 3/4 at step 4 of 4, 1 - 4/8 at step 5 of 8; 1 - 2/4 at step 3 of 4.
    change = "trainer.max_steps was 4 and is 8. The learning rate changes from 0.0025 at step 4 to 0.005 at step 5."
    assert (change in said) == ("learning rate" in said) == (max_steps == 8)
    rates = [json.loads(line)["optim/lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates[step] == pytest.approx(0.005)
