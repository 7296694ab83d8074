"""Each rank's log file: every line has time, rank and step; no line is lost, and a log never ends a run."""

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from framework.distributed.processes.position import POSITION
from framework.tracking.rank_log import RUN_LOGGER, rank_log

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) rank 3 step (\S+) ([A-Z]+) (.*)")


@pytest.fixture
def step_120(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POSITION, "step", 120)


def lines(folder: Path) -> list[tuple[str, str, str]]:
    """Returns step, level and text of each line of rank 3; every line must have the format."""
    records = []
    for line in (folder / "rank_00003.log").read_text(encoding="utf-8").splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, line
        records.append(match.groups()[1:])
    return records


def test_every_line_of_a_traceback_has_rank_and_step(tmp_path: Path, step_120: None) -> None:
    with rank_log(tmp_path / "logs", 3):
        logging.getLogger(RUN_LOGGER).info("loss %.1f", 2.5)
        try:
            raise ValueError("two\nlines")
        except ValueError as error:
            logging.getLogger(RUN_LOGGER).error("failed", exc_info=error)
    written = lines(tmp_path / "logs")
    assert written[0] == ("120", "INFO", "loss 2.5")
    assert written[1] == ("120", "ERROR", "failed")
    assert written[2] == ("120", "ERROR", "Traceback (most recent call last):")
    assert written[-2:] == [("120", "ERROR", "ValueError: two"), ("120", "ERROR", "lines")]


def test_a_start_appends_to_the_file_and_restores_logging(tmp_path: Path) -> None:
    handlers, level, show = list(logging.getLogger().handlers), logging.getLogger("framework").level, None
    show = warnings.showwarning
    for text in ("first", "second"):
        with rank_log(tmp_path, 3):
            logging.getLogger(RUN_LOGGER).info(text)
    logging.getLogger(RUN_LOGGER).info("after")
    assert [text for _, _, text in lines(tmp_path)] == ["first", "second"]
    assert (logging.getLogger().handlers, logging.getLogger("framework").level) == (handlers, level)
    assert warnings.showwarning is show


def test_warnings_of_python_and_of_others_are_kept_and_shown(tmp_path: Path, capfd, monkeypatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: shown.append(str(message)))
    with warnings.catch_warnings(), rank_log(tmp_path, 3):
        warnings.simplefilter("always")
        for _ in range(3):
            warnings.warn("old way", DeprecationWarning, stacklevel=1)
        logging.getLogger("some.library").warning("careful")
        logging.getLogger("framework.data.examples.table").warning("a row was skipped")
        logging.getLogger(RUN_LOGGER).warning("for the file only")
    written = [text for _, level, text in lines(tmp_path) if level == "WARNING"]
    assert len(written) == 4
    assert written[0].startswith("DeprecationWarning: old way (")
    assert written[1:] == ["careful", "a row was skipped", "for the file only"]
    console = capfd.readouterr().err
    assert "careful" in console and "a row was skipped" in console
    assert shown == ["old way"] * 3
    assert "old way" not in console and "for the file only" not in console


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    program = (
        "import logging, os, pathlib, signal, sys\n"
        "from framework.tracking.rank_log import rank_log\n"
        "with rank_log(pathlib.Path(sys.argv[1]), 3):\n"
        "    for number in range(500):\n"
        "        logging.getLogger('framework.run').info('line %d', number)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=os.environ | {"PYTHONPATH": root}, check=False
    )
    assert ended.returncode == -9
    assert [text for _, _, text in lines(tmp_path)] == [f"line {number}" for number in range(500)]


def test_a_disk_that_rejects_lines_is_reported_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rank_00003.log").symlink_to("/dev/full")
    with rank_log(tmp_path, 3):
        for _ in range(3):
            logging.getLogger(RUN_LOGGER).info("lost")
    assert capfd.readouterr().err.count("its log cannot be written") == 1
    (tmp_path / "file").touch()
    with rank_log(tmp_path / "file", 3):
        logging.getLogger(RUN_LOGGER).info("lost")
    assert "its log cannot be opened" in capfd.readouterr().err
