"""Outputs of commands: opened before the work; regular files appear completely; other files keep their kind."""

import contextlib
import io
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from framework.config.outputs import check_output_differs, open_output, write_to_stdout
from framework.errors import ConfigError, DataError


def write(output: Path | str, text: str = "中\n") -> None:
    with open_output(str(output)) as writing:
        writing([text])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_completely_or_not_at_all(tmp_path):
    target = tmp_path / "out.jsonl"
    with open_output(str(target)) as writing:
        assert not target.exists()
        writing(["a\n", "中\n"])
    assert target.read_text(encoding="utf-8") == "a\n中\n"
    target.chmod(0o640)
    with contextlib.suppress(KeyboardInterrupt), open_output(str(target)) as writing:
        writing(["b\n"])
        raise KeyboardInterrupt
    assert (target.read_text(encoding="utf-8"), names(tmp_path)) == ("a\n中\n", ["out.jsonl"])
    write(target)
    assert (target.read_text(encoding="utf-8"), stat.S_IMODE(target.stat().st_mode)) == ("中\n", 0o640)


def test_a_symlink_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("there", "not_yet"):
        (tmp_path / name).symlink_to(Path("elsewhere") / name)
    (tmp_path / "elsewhere" / "there").write_text("before")
    for name in ("there", "not_yet"):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "elsewhere" / name).read_text(encoding="utf-8") == "中\n"
    assert names(tmp_path) == ["elsewhere", "not_yet", "there"] and names(tmp_path / "elsewhere") == [
        "not_yet",
        "there",
    ]


def test_a_fifo_is_written_to(tmp_path):
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text(encoding="utf-8")))
    reader.start()
    write(fifo)
    reader.join(10)
    assert read == ["中\n"] and fifo.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root")
def test_device_nodes_are_not_replaced(tmp_path):
    null, full, block = (tmp_path / name for name in ("null", "full", "block"))
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        os.mknod(block, 0o666 | stat.S_IFBLK, os.makedev(7, 250))
    except PermissionError:
        pytest.skip("this container makes no device nodes")
    with contextlib.suppress(PermissionError):  # mounted without devices
        write(null)
        with pytest.raises(DataError, match=r"full cannot be written \(No space left on device\)"):
            write(full)
    assert null.is_char_device() and full.is_char_device()
    with pytest.raises(ConfigError, match="block is not a regular file"):
        write(block)
    assert block.is_block_device() and names(tmp_path) == ["block", "full", "null"]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("nowhere/out.jsonl", "No such file or directory"),
        ("file/out.jsonl", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("a\0b", "embedded null byte"),
        ("folder", "is a folder"),
        ("read_only", "Permission denied"),
    ],
)
def test_an_impossible_output_is_rejected_before_the_work(tmp_path, monkeypatch, output, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "read_only").touch()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "read_only")
    with pytest.raises(ConfigError, match=why), open_output(output):
        pytest.fail("the work began")
    assert names(tmp_path) == ["file", "folder", "read_only"]


def test_a_full_disk_is_reported_before_the_work(tmp_path, monkeypatch):
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ConfigError, match="No space left on device"), open_output(str(tmp_path / "out")):
        pytest.fail("the work began")
    assert names(tmp_path) == []


def test_errors_of_the_work_are_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights"), open_output(str(tmp_path / "out")):
        raise FileNotFoundError(2, "weights")
    assert names(tmp_path) == []


def test_an_output_cannot_be_an_input(tmp_path):
    (tmp_path / "in").write_text("a")
    (tmp_path / "link").symlink_to("in")
    os.link(tmp_path / "in", tmp_path / "hard")
    for name in ("in", "link", "hard"):
        with pytest.raises(ConfigError, match=r"is the input file .*in"):
            check_output_differs(str(tmp_path / name), [None, str(tmp_path / "in")])
    check_output_differs(str(tmp_path / "other"), [str(tmp_path / "in")])
    check_output_differs(os.devnull, [os.devnull])


def test_standard_output_accepts_any_text(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    write_to_stdout(["好 ok\n"])
    assert buffer.getvalue() == b"\\u597d ok\n"


def test_a_reader_that_closes_early_ends_the_command_quietly(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as leaving:
        write_to_stdout(["a\n"])
    assert leaving.value.code == 141
    stream.close()  # Python flushes at its end: no second error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_error(monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(DataError, match=r"standard output cannot be written \(No space left on device\)"):
            write_to_stdout(["a\n"])
