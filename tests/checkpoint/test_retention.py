"""The checkpoints that are kept, computed by hand, and kills between the stages of a deletion."""

import json
import os
from pathlib import Path

import pytest

from framework.checkpoint.integrity import mark_complete, verify
from framework.checkpoint.layout import complete_checkpoints, mark_damaged, newest_complete, step_of
from framework.checkpoint.retention import Retention

NO_VALIDATION: dict[str, float] = {}


def make(checkpoints: Path, step: int, validation: dict[str, float] | None = None) -> Path:
    folder = checkpoints / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_text("12345")
    state = {"format": 1, "step": step} | ({} if validation is None else {"validation": validation})
    (folder / "state.json").write_text(json.dumps(state))
    mark_complete(folder)
    return folder


def steps(checkpoints: Path) -> list[int]:
    return [step_of(folder) for folder in complete_checkpoints(checkpoints)]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(keep_last=1), {70}),
        (Retention(keep_last=3), {50, 60, 70}),
        (Retention(keep_last=9), {10, 20, 30, 40, 50, 60, 70}),
        (Retention(keep_last=0), {70}),
        (Retention(keep_last=1, keep_every_n_steps=30), {30, 60, 70}),
        (Retention(keep_last=1, keep_best=1), {20, 70}),  # 20 and 40 are equally good: the earlier one is kept
        (Retention(keep_last=1, keep_best=2), {20, 40, 70}),
        (Retention(keep_last=1, keep_best=1, best_mode="max"), {50, 70}),
        (Retention(keep_last=1, keep_best=9), {10, 20, 40, 50, 70}),  # not 30 and 60: one infinite, one without a value
        (Retention(keep_last=1, keep_best=1, best_key="val/accuracy", best_mode="max"), {10, 70}),
        (Retention(keep_last=1, keep_best=1, best_key="val/other"), {70}),
        (Retention(keep_last=1, newest_of_every=20), {60, 70}),
        (Retention(keep_last=1, newest_of_every=80), {70}),
        (Retention(keep_last=2, keep_every_n_steps=50, keep_best=1), {20, 50, 60, 70}),
    ],
)
def test_the_kept_checkpoints_of_seven(retention: Retention, kept: set[int]) -> None:
    losses = {10: 3.0, 20: 1.0, 30: float("-inf"), 40: 1.0, 50: 5.0, 70: 2.0}
    validations = {step: {"val/loss": loss, "val/accuracy": 1 / step} for step, loss in losses.items()}
    assert retention.steps_to_keep(validations | {60: NO_VALIDATION}) == kept


def test_the_sequence_of_saves_of_a_run(tmp_path: Path) -> None:
    retention = Retention(keep_last=2, keep_every_n_steps=4, keep_best=1)
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 2.0, 6: None, 7: 7.0, 8: 8.0, 9: 9.0}
    expected = {
        1: [1],
        2: [1, 2],
        3: [2, 3],
        4: [2, 3, 4],
        5: [4, 5],  # 2 is no longer the best
        6: [4, 5, 6],
        7: [4, 5, 6, 7],
        8: [4, 5, 7, 8],
        9: [4, 5, 8, 9],
    }
    for step, loss in losses.items():
        make(tmp_path, step, None if loss is None else {"val/loss": loss})
        retention.prune(tmp_path)
        assert steps(tmp_path) == expected[step]


def test_checkpoints_of_older_versions_and_damaged_states_are_never_the_best(tmp_path: Path) -> None:
    make(tmp_path, 1)
    (make(tmp_path, 2, {"val/loss": 0.0}) / "state.json").write_text("{")
    make(tmp_path, 3, {"val/loss": 2.0})
    make(tmp_path, 4, {"val/loss": 3.0})
    Retention(keep_last=1, keep_best=1).prune(tmp_path)
    assert steps(tmp_path) == [3, 4]


class KillError(BaseException):
    """Simulates a kill: no code handles it."""


def test_an_interrupted_deletion_leaves_no_checkpoint_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that removes a file or folder is interrupted once."""
    remaining = 0
    real_unlink, real_rmdir = os.unlink, os.rmdir

    def spend() -> None:
        nonlocal remaining
        if remaining == 0:
            raise KillError
        remaining -= 1

    def unlink(*args: object, **kwargs: object) -> None:
        spend()
        real_unlink(*args, **kwargs)  # type: ignore[arg-type]

    def rmdir(*args: object, **kwargs: object) -> None:
        spend()
        real_rmdir(*args, **kwargs)  # type: ignore[arg-type]

    kills = 0
    for budget in range(20):
        checkpoints = tmp_path / str(budget)
        for step in (1, 2, 3):
            make(checkpoints, step)
        remaining = budget
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink)
            patch.setattr(os, "rmdir", rmdir)
            try:
                Retention(keep_last=1).prune(checkpoints)
            except KillError:
                kills += 1
        for folder in complete_checkpoints(checkpoints):
            verify(folder, "checksums")
        assert newest_complete(checkpoints) == checkpoints / "step_00000003"
        Retention(keep_last=1).prune(checkpoints)
        assert [path.name for path in checkpoints.iterdir()] == ["step_00000003"], "the next save deletes it"
    # Two checkpoints of COMPLETE, two files and the folder.
    assert kills == 8


def test_a_checkpoint_marked_as_damaged_stays_until_a_newer_one_is_complete(tmp_path: Path) -> None:
    make(tmp_path, 1)
    damaged = make(tmp_path, 2)
    mark_damaged(damaged)
    mark_damaged(damaged)
    assert newest_complete(tmp_path) == tmp_path / "step_00000001"
    Retention(keep_last=1).prune(tmp_path)
    assert (damaged / "__0_0.distcp").exists()
    make(tmp_path, 3)
    Retention(keep_last=2).prune(tmp_path)
    assert not damaged.exists()
    assert steps(tmp_path) == [1, 3]
