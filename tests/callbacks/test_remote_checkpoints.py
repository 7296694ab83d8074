"""Runs with checkpoints behind a URL: background saves, resume, rollback, and failed writes."""

from pathlib import Path

import pytest

from framework.callbacks.cadence import Cadence
from framework.callbacks.finite_guard import NonFinite
from framework.checkpoint.integrity import verify
from framework.checkpoint.layout import complete_checkpoints, newest_complete, step_of
from framework.checkpoint.retention import Retention
from framework.checkpoint.storage import Location, location
from tests.support.files.no_rename import NoRenameFileSystem
from tests.support.processes.workers import WorkerPool
from tests.support.training.bad_sequences import bad_module
from tests.support.training.cuts import CutAt, CutError
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=7, log_every_n_steps=1, validate_every_n_steps=3, checkpoint_every_n_steps=2)
KEEP = Retention(keep_last=9)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Location:
    return location(f"norename://{tmp_path}/bucket")


@pytest.mark.parametrize("checkpoint_async", [True, False])
def test_an_interrupted_run_resumes_from_there_with_the_same_rows(
    checkpoint_async: bool, checkpoints: Location, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, cadence=CADENCE)
    arguments = {"cadence": CADENCE, "checkpoints": checkpoints, "checkpoint_async": checkpoint_async}
    with pytest.raises(CutError):
        train(cut, extra_callbacks=(CutAt("on_train_batch_start", 5),), **arguments)
    newest = newest_complete(checkpoints)
    assert newest is not None and step_of(newest) == 4
    # A damaged checkpoint is skipped and written again.
    shard = tmp_path / "bucket" / "step_00000004" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    train(cut, checkpoint=newest, **arguments)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [path.name for path in complete_checkpoints(checkpoints)] == ["step_00000006", "step_00000007"]
    assert {path.name for path in (tmp_path / "bucket").iterdir()} == {"step_00000006", "step_00000007"}
    verify(checkpoints / "step_00000007", "checksums")
    assert not (cut / "checkpoints").exists()


def test_a_run_rolls_back_to_remote_checkpoints(checkpoints: Location, tmp_path: Path) -> None:
    arguments = {"cadence": CADENCE, "non_finite": NonFinite("roll_back")}
    train(tmp_path / "on_disk", module=bad_module([14]), **arguments)
    train(tmp_path / "behind_a_url", module=bad_module([14]), checkpoints=checkpoints, **arguments)
    rows = (tmp_path / "on_disk" / "metrics.jsonl").read_bytes()
    assert b"optim/skipped_steps" in rows
    assert (tmp_path / "behind_a_url" / "metrics.jsonl").read_bytes() == rows


def train_where_step_4_is_refused(folder: str) -> None:
    NoRenameFileSystem.full_at = "step_00000004/__1_0.distcp"
    try:
        train(Path(folder), "fsdp2", CADENCE, checkpoints=location(f"norename://{folder}/bucket"), retention=KEEP)
    finally:
        NoRenameFileSystem.full_at = None


def test_a_failed_write_costs_one_checkpoint(workers: WorkerPool, checkpoints: Location, tmp_path: Path) -> None:
    workers.run(train_where_step_4_is_refused, 2, str(tmp_path))
    assert [step_of(path) for path in complete_checkpoints(checkpoints)] == [2, 6, 7]
    assert not (tmp_path / "bucket" / "step_00000004").exists()
