"""The newest complete checkpoint, and the checkpoints that may be deleted."""

from pathlib import Path

import pytest

from framework.checkpoint.integrity import mark_complete, verify
from framework.checkpoint.layout import (
    complete_checkpoints,
    newest_complete,
    read_state,
    step_folder,
    step_of,
    write_json,
)
from framework.checkpoint.retention import Retention
from framework.errors import CheckpointError


def make(checkpoints: Path, name: str, complete: bool = True) -> Path:
    folder = checkpoints / name
    folder.mkdir(parents=True)
    (folder / "data").write_text("12345")
    if complete:
        mark_complete(folder)
    return folder


def test_newest_complete_ignores_incomplete_checkpoints(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "missing") is None
    make(tmp_path, "step_00000010")
    make(tmp_path, "step_00000009")
    make(tmp_path, "step_00000020", complete=False)
    make(tmp_path, "step_00000030.tmp")
    make(tmp_path, "best")
    assert newest_complete(tmp_path) == tmp_path / "step_00000010"
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000009", "step_00000010"]


def test_steps_with_more_digits_sort_as_numbers(tmp_path: Path) -> None:
    make(tmp_path, "step_99999999")
    make(tmp_path, "step_100000000")
    assert newest_complete(tmp_path) == step_folder(tmp_path, 100_000_000)
    assert step_of(tmp_path / "step_00000120") == 120
    with pytest.raises(CheckpointError, match="best"):
        step_of(tmp_path / "best")


def test_prune_keeps_the_newest_and_deletes_older_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, f"step_0000000{step}")
    make(tmp_path, "step_00000002.tmp", complete=False)
    (tmp_path / "step_00000003" / "COMPLETE").unlink()
    make(tmp_path, "step_00000009.tmp", complete=False)
    make(tmp_path, "step_00000008", complete=False)
    (tmp_path / "notes.txt").touch()
    Retention(keep_last=2).prune(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step_00000002", "step_00000004", "step_00000009.tmp", "step_00000008", "notes.txt"}
    Retention(keep_last=0).prune(tmp_path)
    assert newest_complete(tmp_path) == tmp_path / "step_00000004", "the last one is never pruned"


def test_prune_without_a_complete_checkpoint_deletes_nothing(tmp_path: Path) -> None:
    make(tmp_path, "step_00000001", complete=False)
    Retention(keep_last=1).prune(tmp_path)
    assert (tmp_path / "step_00000001").exists()


def test_verify_compares_sizes(tmp_path: Path) -> None:
    folder = make(tmp_path, "step_00000001")
    verify(folder)
    (folder / "data").write_text("1234")
    with pytest.raises(CheckpointError, match="data has 4 bytes, but 5 bytes were written"):
        verify(folder)
    (folder / "COMPLETE").write_text("")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        verify(folder)


def test_an_unknown_format_is_rejected(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"format": 2, "step": 3})
    with pytest.raises(CheckpointError, match=r"format 2\. This version of Cloze reads format 1"):
        read_state(tmp_path)
