"""A disk that is full at any file of a save: one error on all ranks, no partial files, older checkpoints intact."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from framework.checkpoint import hashing
from framework.checkpoint.integrity import verify
from framework.checkpoint.save import SaveError
from framework.errors import CheckpointError
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import build
from tests.support.processes.workers import WorkerPool

ROOT = Path(__file__).resolve().parents[2]


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def full_at(name_end: str) -> Callable[..., Any]:
    """Opens files of a checkpoint such that one can be opened but accepts no bytes."""
    real = Path.open

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        stream = real(path, *args, **kwargs)
        if path.name.endswith(name_end) and path.parent.name.startswith("step_00000002"):
            stream.close()
            return real(Path("/dev/full"), *args, **kwargs)
        return stream

    return opened


def save_on_a_full_disk(strategy: str, folder: str, name_end: str) -> tuple[str, str]:
    tiny = build(strategy)
    save_checkpoint(Path(folder), 1, tiny.model, tiny.optimizer, {})
    with replaced(Path, "open", full_at(name_end)):
        try:
            save_checkpoint(Path(folder), 2, tiny.model, tiny.optimizer, {})
        except CheckpointError as error:
            return type(error).__name__, str(error)
    return "", "nothing was raised"


FILES = ["__0_0.distcp", ".metadata.tmp", "state.json.part", "COMPLETE.part"]


def check(folder: Path, outcome: tuple[str, str], rank: int) -> None:
    kind, message = outcome
    assert kind == "SaveError"
    assert f"step_00000002 could not be written: the disk refused rank {rank}" in message
    assert "No space left on device" in message
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]
    verify(folder / "step_00000001", "checksums")


@pytest.mark.parametrize("name_end", FILES)
def test_no_room_for_one_file(tmp_path: Path, name_end: str) -> None:
    check(tmp_path, save_on_a_full_disk("single", str(tmp_path), name_end), 0)


@pytest.mark.parametrize("name_end", ["__1_0.distcp", "COMPLETE.part"])
def test_no_room_on_one_of_two_ranks(workers: WorkerPool, tmp_path: Path, name_end: str) -> None:
    first, second = workers.run(save_on_a_full_disk, 2, "fsdp2", str(tmp_path), name_end)
    assert first == second
    check(tmp_path, first, 1 if name_end.startswith("__1") else 0)


def test_no_room_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = build("single")

    def refuse(*args: object, **kwargs: object) -> None:
        raise no_space()

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaveError, match="No space left"):
        save_checkpoint(tmp_path, 2, tiny.model, tiny.optimizer, {})
    assert not list(tmp_path.iterdir())


def test_a_programming_error_is_not_reported_as_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run must not continue for weeks without checkpoints because of a mistake in the code."""
    tiny = build("single")

    def stumble(*args: object) -> None:
        raise KeyError("shape")

    monkeypatch.setattr(hashing.HashingFileSystem, "create_stream", stumble)
    with pytest.raises(CheckpointError, match="KeyError") as caught:
        save_checkpoint(tmp_path, 2, tiny.model, tiny.optimizer, {})
    assert not isinstance(caught.value, SaveError)


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """The limit is 20,000 bytes: the small files fit, the shard does not."""
    program = [sys.executable, "-m", "tests.support.files.full_disk_program", str(tmp_path), "20000"]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "SaveError" in line]
    assert "File too large" in line
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    verify(tmp_path / "step_00000001", "checksums")
