"""Lines of plain and compressed files, globs, and damage."""

import gzip
import os
from pathlib import Path

import pytest

from framework.data.reading.files import Reading, decode_line, find_files, kind_of, raw_lines
from framework.errors import ConfigError, DataError
from tests.support.data.source_files import write

LINES = "".join(f"line {number} of a file, é\r\n" for number in range(3_000)).encode() + b"a\x00b\xc2\x85c"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "A.TXT.GZ"])
def test_only_line_feeds_end_lines_and_progress_counts_all_bytes(tmp_path, name):
    file = write(tmp_path / name, LINES)
    done: list[int] = []
    lines = list(raw_lines(file, Reading(advance=done.append)))
    assert [number for number, _ in lines] == list(range(1, 3_002))
    assert b"".join(raw for _, raw in lines) == LINES
    assert lines[-1][1] == b"a\x00b\xc2\x85c"
    assert sum(done) == file.stat().st_size


def test_several_gzip_members_are_one_file(tmp_path):
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert [raw for _, raw in raw_lines(file, Reading())] == [b"one\n", b"two\n"]


# A zstd stream detects overwritten bytes only if it was written with a checksum, which pyarrow does not do.
@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".gz", "cut"), (".gz", "overwritten"), (".gz", "not compressed"), (".zst", "cut"), (".zst", "not compressed")],
)
def test_a_damaged_compressed_file_is_an_error_even_if_rows_are_skipped(tmp_path, suffix, damage):
    content = bytearray(write(tmp_path / f"a{suffix}", os.urandom(50_000).hex().encode()).read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "overwritten":
        content[len(content) // 2 : len(content) // 2 + 64] = b"\xff" * 64
    else:
        content = bytearray(b"plain text\n")
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\{suffix} is damaged after line \d+ \(.+\)\. .* Fetch or compress"):
        list(raw_lines(tmp_path / f"a{suffix}", Reading("skip")))


def test_empty_missing_and_unreadable_files(tmp_path):
    write(tmp_path / "a.gz", b"")
    with pytest.raises(DataError, match=r"a\.gz is empty"):
        list(raw_lines(tmp_path / "a.gz", Reading()))
    with pytest.raises(DataError, match=r"nowhere cannot be read \(No such file"):
        list(raw_lines(tmp_path / "nowhere", Reading()))
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        list(raw_lines(tmp_path, Reading()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    file = write(tmp_path / "a.txt", b"x")
    file.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        list(raw_lines(file, Reading()))


def test_bytes_that_are_not_utf_8():
    assert decode_line(Path("a"), 1, "\ufeffé".encode()) == "é"
    assert decode_line(Path("a"), 2, "\ufeffé".encode()) == "\ufeffé"
    with pytest.raises(DataError, match="a, line 7: byte 0xa3 at position 3 is not UTF-8"):
        decode_line(Path("a"), 7, b"ab\xa3")


def test_skipped_rows_are_counted_and_the_first_are_kept():
    reading = Reading("skip")
    for number in range(8):
        reading.bad_row(DataError(f"row {number}"))
    assert (reading.num_skipped, reading.skipped[0], len(reading.skipped)) == (8, "row 0", 5)
    with pytest.raises(DataError, match="row 9"):
        Reading().bad_row(DataError("row 9"))
    with pytest.raises(ConfigError, match="on_bad_row is 'drop', which is unknown"):
        Reading("drop")


def test_globs_are_sorted_and_files_come_once(tmp_path):
    paths = [write(tmp_path / name, b"x") for name in ("a1.txt", "a2.txt", "b[1].txt")]
    patterns = [str(tmp_path / "a2.txt"), str(tmp_path / "**" / "*.txt"), str(tmp_path / "b[1].txt")]
    assert find_files(patterns) == [paths[1], paths[0], paths[2]]
    assert find_files(patterns[1], exclude=[str(tmp_path / "a*")]) == [paths[2]]
    with pytest.raises(DataError, match=r"no file matches .*c\.txt"):
        find_files(str(tmp_path / "c.txt"))
    with pytest.raises(DataError, match="`exclude` matches all files"):
        find_files(patterns[0], exclude=patterns)


def test_the_kind_follows_from_the_suffix_before_the_compression():
    names = ["a.csv", "b.JSONL.gz", "c.tar.zst", "d.gz", "e"]
    assert [kind_of(Path(name)) for name in names] == [".csv", ".jsonl", ".tar", "", ""]
