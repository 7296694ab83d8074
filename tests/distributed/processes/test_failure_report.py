"""If several ranks fail, the first failure is named, and one rank prints it."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import DistBackendError

from framework.distributed.processes.beats import Beat
from framework.distributed.processes.failure_report import (
    _BROKEN,
    _NAMED,
    REPORT,
    Failure,
    FailureReport,
    _host_folder,
    first_of,
    one_line,
    report_once,
)
from framework.distributed.processes.position import POSITION
from framework.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


def run(kinds: list[str], temporary: Path, attempt: int = 0, *folder: str) -> list[str]:
    """Runs one process per rank, which fail at the same time; returns the output of each."""
    program = str(ROOT / "tests" / "support" / "processes" / "failing_program.py")
    processes = []
    with tempfile.TemporaryDirectory() as ready:
        for rank, kind in enumerate(kinds):
            environ = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(kinds)),
                "TORCHELASTIC_RESTART_COUNT": str(attempt),
                "TMPDIR": str(temporary),
                "CLOZE_TEST_READY": ready,
                "PYTHONPATH": str(ROOT),
            }
            command = [sys.executable, program, kind, *folder]
            processes.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
        return [process.communicate(timeout=120)[1] for process in processes]


def failure(reporter: int, message: str, order: int, seconds: float) -> Failure:
    return Failure(reporter, reporter, 7, "", "DataError", message, order, seconds, "host", 1)


def test_the_lowest_rank_prints(tmp_path: Path) -> None:
    assert run(["named", "named"], tmp_path) == ["ConfigError (rank 0): a config error\n", ""]


def test_a_named_error_precedes_the_connections_that_it_broke(tmp_path: Path) -> None:
    assert run(["other", "other", "named"], tmp_path) == ["", "", "ConfigError (rank 2): a config error\n"]
    # The next attempt has its own folder of notes.
    assert run(["other", "other", "other"], tmp_path, 1)[0] == "RuntimeError (rank 0): a broken connection\n"


def test_notes_of_an_earlier_attempt_are_ignored(tmp_path: Path) -> None:
    run(["named", "named"], tmp_path)
    (board,) = tmp_path.iterdir()
    for note in board.iterdir():
        os.utime(note, (time.time() - 60, time.time() - 60))
    assert run(["other"] * 2, tmp_path)[0] == "RuntimeError (rank 0): a broken connection\n"


def test_a_single_process_prints_immediately(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    REPORT.close()
    for _ in range(2):
        report_once(DataError("file.csv, row 3: no label."))
    assert capsys.readouterr().err == "DataError: file.csv, row 3: no label.\n"
    REPORT.close()
    monkeypatch.setattr(POSITION, "step", 12)
    report_once(DataError("file.csv, row 3: no label."))
    assert capsys.readouterr().err == "DataError (step 12): file.csv, row 3: no label.\n"
    REPORT.close()


def test_the_earliest_error_is_first_within_its_kind() -> None:
    late, early = failure(0, "late", 1, 20.0), failure(2, "early", 1, 10.0)
    broken = failure(1, "connection closed", 2, 1.0)
    assert first_of([broken, late, early]) == early
    named = failure(3, "named", 0, 99.0)
    assert first_of([broken, late, early, named]) == named
    assert first_of([]) is None


def test_the_same_error_on_all_ranks_is_reported_by_the_lowest_regardless_of_clocks() -> None:
    same = [failure(rank, "the loss is nan", 0, seconds) for rank, seconds in ((2, 1.0), (0, 3.0), (1, 2.0))]
    assert first_of([failure(3, "later", 0, 1.5), *same]) == same[1]


def test_an_error_that_all_raise_names_the_rank_of_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(POSITION, "step", 120)
    error = DataError("row 5 has no label.")
    error.rank = 3
    assert str(REPORT.describe(error)) == "DataError (rank 3, step 120): row 5 has no label."


def test_errors_caused_by_a_dead_peer_are_recognized() -> None:
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    orders = [REPORT.describe(error).order for error in (DataError("x"), ValueError("x"), gloo, DistBackendError("x"))]
    assert orders == [0, 1, 2, 2]


def test_an_error_from_a_loaders_process_is_one_line() -> None:
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in run\nframework.errors.DataError: rows.csv: row 3 has no label.\n'
    )
    assert one_line(DataError(text)) == "rows.csv: row 3 has no label."
    assert one_line(ValueError("one\n  two")) == "one two"


def test_a_rank_that_has_ended_is_named_by_the_others(tmp_path: Path) -> None:
    """Ranks 0 and 1 see a broken connection; rank 2's process has ended and left its last beat."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    beats = [
        Beat(rank, "", os.getpid(), 5, 30, 12, "validates", "a.py:1 f", True, str(tmp_path / "2.log"))
        for rank in range(2)
    ]
    beats.append(replace(beats[0], rank=2, pid=ended.pid, point="backward of micro-batch 2", waits_for_others=False))
    host = os.uname().nodename
    for beat in beats:
        content = json.dumps({**vars_of(beat), "host": host})
        (tmp_path / f"beat_{beat.rank:05d}.json").write_text(content)
    (tmp_path / "2.log").write_text("first\nlast words\n")
    printed = run(["broken", "broken"], tmp_path, 0, str(tmp_path))
    assert printed[1] == ""
    assert printed[0].startswith("DistributedError (rank 2): ended without an error report")
    assert "in step 12: backward of micro-batch 2" in printed[0] and 'ends with "last words"' in printed[0]
    record = json.loads((tmp_path / "failure.json").read_text())
    assert (record["rank"], record["reporter"], record["pid"]) == (2, 0, ended.pid)


def vars_of(beat: Beat) -> dict[str, object]:
    return {name: getattr(beat, name) for name in Beat.__dataclass_fields__}


def host_folder(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return _host_folder()


def test_notes_never_follow_a_planted_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, victim = tmp_path / "tmp", tmp_path / "victim"
    temporary.mkdir()
    victim.mkdir()
    kept = victim / "failure_00000.json"
    kept.write_text("precious")
    os.utime(kept, (0, 0))
    folder = host_folder(temporary, monkeypatch)
    assert folder is not None and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()
    folder.symlink_to(victim)
    assert host_folder(temporary, monkeypatch) is None
    REPORT.close()
    assert REPORT._first_of_all(failure(0, "a config error", 0, 1.0)).message == "a config error"
    assert [path.name for path in victim.iterdir()] == [kept.name] and kept.read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "open to all", "of somebody else"])
def test_a_folder_that_others_can_change_is_not_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = host_folder(tmp_path, monkeypatch)
    assert folder is not None
    if kind == "file":
        folder.rmdir()
        folder.touch()
    elif kind == "open to all":
        folder.chmod(0o777)
    else:
        own = os.getuid()
        lstat = Path.lstat
        monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result([*lstat(path)[:4], own + 1, *lstat(path)[5:]]))
    assert host_folder(tmp_path, monkeypatch) is None


def test_a_second_thread_does_not_replace_the_note_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rank hangs, and the other one's connection breaks while its watchdog exchanges notes."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    report = FailureReport()
    report._folder = tmp_path
    hangs, broken = failure(0, "hangs", _NAMED, 1.0), failure(0, "connection closed", _BROKEN, 2.0)
    results = []
    watchdog = threading.Thread(target=lambda: results.append(report.exchange(hangs)))
    watchdog.start()
    limit = time.monotonic() + 60
    while not [*tmp_path.glob("failure_*.json")] and time.monotonic() < limit:
        time.sleep(0.01)
    results.append(report.exchange(broken))
    watchdog.join()
    assert [each.message for each in results] == ["hangs", "hangs"]
    assert json.loads((tmp_path / "failure_00000.json").read_text())["message"] == "hangs"
    report.print_once()
    report.print_once()
    assert capfd.readouterr().err.count("hangs") == 1
