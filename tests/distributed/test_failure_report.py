"""Of several ranks that fail, one prints."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.distributed.failure_report import report_once
from framework.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def run(kinds: list[str], temporary: Path, attempt: int = 0) -> list[str]:
    """Runs one process a rank; returns what each printed."""
    processes = []
    for rank, kind in enumerate(kinds):
        environ = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(kinds)),
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
            "TMPDIR": str(temporary),
        }
        command = [sys.executable, str(ROOT / "tests" / "distributed" / "failing_program.py"), kind]
        environ["PYTHONPATH"] = str(ROOT)
        processes.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
    return [process.communicate(timeout=60)[1] for process in processes]


def test_the_lowest_rank_speaks(tmp_path: Path) -> None:
    assert run(["named", "named"], tmp_path) == ["ConfigError (rank 0): a config error\n", ""]


def test_a_named_error_goes_before_the_connections_that_it_broke(tmp_path: Path) -> None:
    assert run(["other", "other", "named"], tmp_path) == ["", "", "ConfigError (rank 2): a config error\n"]
    # The next attempt has a board of its own.
    assert run(["other", "other", "other"], tmp_path, attempt=1)[0] == "RuntimeError (rank 0): a broken connection\n"


def test_notes_of_an_attempt_before_are_forgotten(tmp_path: Path) -> None:
    run(["named", "named"], tmp_path)
    (board,) = tmp_path.iterdir()
    for note in board.iterdir():
        os.utime(note, (time.time() - 60, time.time() - 60))
    assert run(["other"] * 2, tmp_path)[0] == "RuntimeError (rank 0): a broken connection\n"


def test_a_single_process_speaks_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    report_once(DataError("file.csv, row 3: no label."))
    assert capsys.readouterr().err == "DataError: file.csv, row 3: no label.\n"
