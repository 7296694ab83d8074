"""Only one start of a run at a time: the second waits, and is then rejected with the name of the first."""

import os
import threading
import time
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.runs.lock import LOCK_FILE, lock_run_folder, wait_limit


def test_a_second_start_waits_and_then_continues(tmp_path: Path, capsys):
    order: list[str] = []

    def second() -> None:
        with lock_run_folder(tmp_path / "x", rank=0, wait_seconds=30):
            order.append("second")

    thread = threading.Thread(target=second)
    with lock_run_folder(tmp_path / "x", rank=0, wait_seconds=0):
        thread.start()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["first", "second"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "it is reported once"
    assert f"/x is in use by process {os.getpid()} on host " in said and "waits up to 30 s" in said
    assert list((tmp_path / "x").iterdir()) == [], "the lock leaves no file"


def test_a_second_start_is_rejected_after_its_wait(tmp_path: Path):
    with lock_run_folder(tmp_path, rank=0, wait_seconds=0):
        began = time.monotonic()
        with (
            pytest.raises(
                ConfigError, match=rf"in use by process {os.getpid()} on host .* UTC\. Only one start"
            ) as caught,
            lock_run_folder(tmp_path, rank=0, wait_seconds=0.2),
        ):
            pass
        assert 0.2 <= time.monotonic() - began < 10
        assert "`run.id`" in str(caught.value) and "`run.wait_seconds`" in str(caught.value)
        with lock_run_folder(tmp_path, rank=1, wait_seconds=0):
            pass  # rank 0 holds it for all


def test_a_failed_run_releases_the_folder(tmp_path: Path):
    with pytest.raises(RuntimeError), lock_run_folder(tmp_path, rank=0, wait_seconds=0):
        raise RuntimeError
    with lock_run_folder(tmp_path, rank=0, wait_seconds=0):
        assert (tmp_path / LOCK_FILE).exists()


def test_a_file_system_without_locks_is_reported_and_the_run_continues(tmp_path: Path, monkeypatch, capsys):
    def refuse(*unused: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_run_folder(tmp_path, rank=0, wait_seconds=0):
        assert "run.lock cannot be locked (Operation not supported)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("world_size", "environ", "seconds"),
    [
        (1, {}, 60),
        (1, {"SLURM_RESTART_COUNT": "0", "TORCHELASTIC_RESTART_COUNT": "0"}, 60),
        (1, {"SLURM_RESTART_COUNT": "2"}, 600),
        (4, {"TORCHELASTIC_RESTART_COUNT": "1"}, 600),
    ],
)
def test_a_requeued_start_waits_until_the_watchdog_has_ended_its_predecessor(world_size, environ, seconds):
    assert wait_limit(60, 600, world_size, environ) == seconds


def test_rank_0_does_not_make_the_others_wait_longer_than_their_timeout():
    assert wait_limit(1000, 600, 1, {}) == 1000
    assert wait_limit(1000, 600, 2, {}) == 600
