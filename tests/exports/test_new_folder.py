"""Folders that are renamed to their final name when complete, and the contents of an earlier one."""

import os
from pathlib import Path

import pytest

from framework.errors import CheckpointError
from framework.exports.new_folder import check_new_folder, new_folder


def write(folder: Path, own: set[str], text: str = "new") -> None:
    with new_folder(folder, own) as temporary:
        (temporary / "model").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_others_are_kept(tmp_path):
    folder = tmp_path / "a" / "export"
    write(folder, set(), "first")
    (folder / "notes.md").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").touch()
    (folder / "onnx").mkdir()
    write(folder, {"model", "onnx"})
    assert names(folder) == ["model", "notes.md", "sub"] and names(tmp_path / "a") == ["export"]
    assert ((folder / "model").read_text(), (folder / "notes.md").read_text()) == ("new", "mine")
    assert names(folder / "sub") == ["deep"]


def test_a_symlink_stays_and_its_folder_is_replaced(tmp_path):
    write(tmp_path / "real", set(), "first")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", {"model"})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "model").read_text() == "new"
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_keeps_the_earlier_folder(tmp_path, error):
    write(tmp_path / "export", set(), "first")
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), new_folder(tmp_path / "export", {"model"}) as temporary:  # noqa: PT012  it is the block
        (temporary / "model").write_text("half")
        raise error
    assert (tmp_path / "export" / "model").read_text() == "first" and names(tmp_path) == ["export"]


def test_an_impossible_folder_is_reported_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in ("file/export", "\0"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            check_new_folder(tmp_path / folder)
    check_new_folder(tmp_path / "not" / "yet" / "there")
    assert names(tmp_path) == ["file"]

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        check_new_folder(tmp_path / "export")
    assert names(tmp_path) == ["file"]
