"""Output that nobody reads must neither raise nor block; tables outside a terminal are not truncated."""

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.table import Table

from framework.tracking.console import DispensableStream, open_console

ROOT = Path(__file__).resolve().parents[2]

_TALKS = """
import logging, sys
handler = logging.StreamHandler()
logging.getLogger("early").addHandler(handler)
from framework.tracking.console import make_console_dispensable, open_console
make_console_dispensable()
for number in range(3000):
    open_console().print(f"line {number} " + "x" * 40)
    print("größer", file=sys.stderr)
    logging.getLogger("early").warning("a handler that was there before")
open(sys.argv[1], "w").write("done")
"""


def talk(tmp_path: Path, shell: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that prints 150 kB to each stream, with the redirections of a shell."""
    script, done = tmp_path / "talks.py", tmp_path / "done"
    script.write_text(_TALKS, encoding="utf-8")
    line = shell.format(f"{sys.executable} {script} {done}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    finished = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.exists(), finished.stderr
    assert finished.returncode == 0, finished.stderr
    return finished


def test_a_reader_that_closes_early_ends_nothing(tmp_path):
    assert talk(tmp_path, "{} 2>&1 | head -1").stdout.startswith(("line 0", "gr\\xf6\\xdfer"))


def test_a_full_disk_and_a_closed_descriptor_end_nothing(tmp_path):
    talk(tmp_path, "{} > /dev/full 2> /dev/full")
    (tmp_path / "done").unlink()
    talk(tmp_path, "{} >&- 2>&-")


def test_a_pipe_that_nobody_reads_blocks_nothing(tmp_path):
    began = time.monotonic()
    talk(tmp_path, f"mkfifo {tmp_path}/p; exec 3<>{tmp_path}/p; {{}} >&3 2>&3")
    assert time.monotonic() - began < 20


def test_output_is_complete_and_a_slow_reader_loses_nothing():
    reader, writer = os.pipe()
    received = bytearray()

    def read_slowly() -> None:
        while chunk := os.read(reader, 3000):
            received.extend(chunk)
            time.sleep(0.001)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    data = bytes(range(256)) * 1200  # five times the capacity of a pipe
    stream = DispensableStream(writer, "standard output")
    assert stream.write(data) == len(data)
    assert os.get_blocking(writer) is not False, "the descriptor is shared with others"
    os.close(writer)
    os.close(stream._nonblocking)
    thread.join()
    assert bytes(received) == data


def test_the_first_loss_of_output_is_logged_by_the_rank(caplog):
    with open("/dev/full", "wb", buffering=0) as full, caplog.at_level(logging.WARNING, "framework.run"):
        stream = DispensableStream(full.fileno(), "standard output")
        assert [stream.write(b"a"), stream.write(b"b")] == [1, 1]
    assert caplog.messages == [
        "standard output accepts no output ([Errno 28] No space left on device). The run continues without it."
    ]


def test_no_table_of_a_log_file_is_truncated(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(*(f"column {index}" for index in range(20)))
    table.add_row(*(f"4.029591234567e-{index:02d}" for index in range(20)))
    open_console().print(table)
    shown = sys.stdout.getvalue()
    assert all(f"4.029591234567e-{index:02d}" in shown for index in range(20))
    assert "…" not in shown


def test_every_console_is_opened_in_one_place():
    files = [file for file in (ROOT / "framework").rglob("*.py") if re.search(r"Console\(", file.read_text("utf-8"))]
    assert [file.name for file in files] == ["console.py"]


def test_control_characters_of_a_text_do_not_reach_the_terminal(capsys):
    table = Table("label")
    table.add_row("\x1b[31mred\x07\x9b")
    console = open_console()
    console.print(table)
    console.print("good\x1b]0;title\x07", "两\n\tlines", markup=False, highlight=False)
    out = capsys.readouterr().out
    assert r"\x1b[31mred\x07\x9b" in out and r"good\x1b]0;title\x07 两" in out
    assert not {"\x1b", "\x07", "\x9b"} & set(out)
