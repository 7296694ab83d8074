"""Tests a run under torchrun whose `run.checkpoints` is a URL, killed and resumed.

An entry point registers the file system of the URL in child processes, as for any installed package.
"""

import os
from pathlib import Path

import pytest

from tests.support.commands.torchrun import finish, kill, start, train_whole, wait_for_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns a URL that every child process can open."""
    package = tmp_path / "packages" / "norename-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: norename\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[fsspec.specs]\nnorename = tests.support.files.no_rename:NoRenameFileSystem\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{ROOT}")
    return f"norename://{tmp_path}/bucket"


def test_a_killed_run_goes_on_bit_for_bit(
    corpus: Path,
    bucket: str,
    tmp_path: Path,
) -> None:
    short, there = "trainer.max_steps=12", f"run.checkpoints={bucket}"
    train_whole(corpus, "on_disk", 2, "fsdp2", short)
    killed = start(corpus, "remote", 2, "fsdp2", short, there)
    folder = corpus.parent / "remote"
    wait_for_rows(killed, folder / "metrics.jsonl", 7)
    kill(killed)
    kept = tmp_path / "bucket" / "remote"
    assert any(kept.glob("step_*/COMPLETE"))

    finish(start(corpus, "remote", 2, "fsdp2", short, there))
    assert (folder / "metrics.jsonl").read_bytes() == (corpus.parent / "on_disk" / "metrics.jsonl").read_bytes()
    assert sorted(path.name for path in kept.iterdir())[-1] == "step_00000012"
    assert not (folder / "checkpoints").exists()
