"""Locks between processes, and files that survive a power cut."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from framework.files import holder_of, locked, write_atomic


def test_a_second_process_is_informed(tmp_path):
    path = tmp_path / "lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert first and not second
    with locked(path, wait=False) as again:
        assert again
    assert not path.exists()


def test_a_waiting_process_gets_a_lock_that_excludes_others(tmp_path):
    """The first removes its file when it ends; the second must not hold the lock of a deleted file."""
    path = tmp_path / "lock"
    waiting, seen = threading.Event(), []

    def second() -> None:
        waiting.set()
        with locked(path, wait=True) as held, locked(path, wait=False) as third:
            seen.append((held, third, path.exists()))

    thread = threading.Thread(target=second)
    with locked(path, wait=True):
        thread.start()
        waiting.wait(timeout=60)
        # Until the other process waits for the lock.
        thread.join(timeout=0.2)
        assert not seen
    thread.join(timeout=60)
    assert seen == [(True, False, True)]


def test_a_lock_names_its_holder(tmp_path):
    path = tmp_path / "lock"
    with locked(path, wait=False):
        assert holder_of(path).startswith(f"process {os.getpid()} on host {socket.gethostname()}, since 20")
    assert holder_of(path) == "another process"


def hold(path: str, inner_pid: Any) -> None:
    """Holds a lock, forks a process that lives longer, as a loader may, and waits to be killed."""
    with locked(Path(path), wait=False) as held:
        assert held
        multiprocessing.get_context("fork").Process(target=live_on, args=(inner_pid,)).start()
        time.sleep(60)


def live_on(inner_pid: Any) -> None:
    inner_pid.value = os.getpid()
    time.sleep(60)


def test_a_lock_follows_no_link(tmp_path):
    (tmp_path / "foreign").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "foreign")
    with pytest.raises(OSError), locked(tmp_path / "lock", wait=False):
        pass
    assert (tmp_path / "foreign").read_text() == "kept"


def test_a_killed_holder_leaves_no_lock_although_its_forked_child_lives(tmp_path):
    context = multiprocessing.get_context("spawn")
    inner_pid = context.Value("i", 0)
    holder = context.Process(target=hold, args=(str(tmp_path / "lock"), inner_pid))
    holder.start()
    deadline = time.monotonic() + 60
    while not inner_pid.value and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        with locked(tmp_path / "lock", wait=False) as held:
            assert not held and f"process {holder.pid} " in holder_of(tmp_path / "lock")
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        os.kill(inner_pid.value, 0)  # the child is alive
        with locked(tmp_path / "lock", wait=False) as held:
            assert held
    finally:
        os.kill(inner_pid.value, signal.SIGKILL)


def test_files_are_flushed_before_they_are_renamed(tmp_path, monkeypatch):
    """A power cut keeps names and loses contents that were not flushed: no unflushed file may get the final name."""
    events = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomic(tmp_path / "a.json", "{}")
    assert events == [("flush", "a.json.part"), ("rename", "a.json"), ("flush", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
