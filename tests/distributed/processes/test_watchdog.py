"""Detection of the hanging rank from the last heartbeats, and situations that are no hang."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.distributed.processes import watchdog as module
from framework.distributed.processes.beats import Beat, Beats, is_gone, last_line
from framework.distributed.processes.position import POSITION, begin_activity
from framework.distributed.processes.watchdog import Watchdog, hung_ranks


def beat(rank: int, count: int, waits: bool, pid: int = 0, number: int = 1) -> Beat:
    host = socket.gethostname()
    return Beat(rank, host, pid or os.getpid(), number, count, 120, "forward", "a.py:1 f", waits, "no.log")


def ranks(beats: list[Beat], silent: tuple[int, ...] = ()) -> list[int]:
    by_rank = {each.rank: each for each in beats}
    return [each.rank for each in hung_ranks(by_rank, [by_rank[rank] for rank in silent])]


def test_the_rank_that_is_behind_hangs() -> None:
    assert ranks([beat(0, 51, True), beat(1, 51, True), beat(2, 50, False), beat(3, 51, True)]) == [2]


def test_of_ranks_with_equal_counts_those_outside_collectives_hang() -> None:
    assert ranks([beat(0, 50, True), beat(1, 50, False), beat(2, 50, True)]) == [1]
    assert ranks([beat(0, 50, True), beat(1, 50, True)]) == [0, 1]


def test_a_silent_rank_hangs_whatever_its_count() -> None:
    assert ranks([beat(0, 50, True), beat(1, 51, False), beat(2, 50, True)], silent=(1,)) == [1]


def test_the_silent_ranks(tmp_path: Path) -> None:
    beats = Beats(tmp_path, 0.05)
    beats.write(beat(0, 1, True))
    beats.write(beat(1, 1, True))
    assert [each.rank for each in beats.silent(except_ranks=[0])] == [1]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    beats.write(beat(2, 1, True, pid=ended.pid))
    # Rank 1 is not named although it writes no new beat: its process exists.
    assert [each.rank for each in beats.silent(except_ranks=[0])] == [2]
    assert is_gone(beats.read()[2]) and not is_gone(beats.read()[1])


def test_a_torn_file_and_a_full_disk_are_no_error(tmp_path: Path) -> None:
    beats = Beats(tmp_path, 0.05)
    assert beats.write(beat(0, 1, True))
    (tmp_path / "beat_00001.json").write_text('{"rank": 1')
    assert list(beats.read()) == [0]
    assert not Beats(tmp_path / "missing", 0.05).write(beat(0, 1, True))
    assert last_line(str(tmp_path / "missing.log")) == ""
    assert json.loads((tmp_path / "beat_00000.json").read_text())["rank"] == 0


@pytest.fixture
def fired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builds a watchdog with a timeout of half a second, and the counts at which it would have ended the process."""
    counts: list[int] = []
    monkeypatch.setattr(Watchdog, "_end_if_hung", lambda self, count: counts.append(count))
    watchdog = Watchdog(Beats(tmp_path, 0.05), 0, tmp_path / "log", 0.5)
    yield watchdog, counts
    watchdog.stop()


def test_a_long_phase_of_many_activities_is_no_hang(fired, tmp_path: Path) -> None:
    watchdog, counts = fired
    watchdog.start()
    for _ in range(40):
        begin_activity("validates")
        time.sleep(0.05)
    if counts:
        pytest.skip("this machine delayed an activity for half a second")
    deadline = time.monotonic() + 60
    while not counts and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counts[0] == POSITION.count
    assert watchdog.beats.read()[0].point == "validates"


def test_time_in_which_the_whole_process_was_stopped_does_not_count(fired, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog, counts = fired
    clock = [0.0]

    def jump() -> float:
        clock[0] += 1000.0
        return clock[0]

    looks = []
    monkeypatch.setattr(module.time, "monotonic", jump)
    monkeypatch.setattr(watchdog._stop, "wait", lambda seconds: looks.append(1) is None and len(looks) > 4)
    watchdog._watch()
    assert len(looks) == 5 and counts == []
    watchdog._thread.start()  # the fixture stops it
