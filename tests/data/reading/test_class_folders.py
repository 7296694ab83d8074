"""Texts in one folder per class."""

import gzip
from pathlib import Path

import pytest

from framework.data.examples.table import TableData
from framework.data.facts import skipped_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in {
        "train/pos/0_9.txt": b"good film\nindeed\n",
        "train/pos/10": "ça va\n".encode(),
        "train/neg/1_1.txt.gz": gzip.compress(b"bad\n"),
        "train/neg/.DS_Store": b"\xff",
        "train/urls.txt": b"http",
        "test/pos/a.txt": b"fine",
        "test/mixed/b.txt": b"so so",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path


def rows(data: TableData, split: str = "train") -> list[tuple[str, object]]:
    return [(row.text, row.label) for row in data.load().splits[split]]


def test_the_folder_is_the_label(folder, caplog):
    data = TableData(str(folder / "train"), test=str(folder / "test"))
    assert rows(data) == [("bad", "neg"), ("good film\nindeed", "pos"), ("ça va", "pos")]
    assert rows(data, "test") == [("so so", "mixed"), ("fine", "pos")]
    assert data.load().labels == ("mixed", "neg", "pos")
    assert "1 files outside of the class folders are not read" in caplog.text
    assert data.load().splits["train"][1].location == f"{folder}/train, file pos/0_9.txt"
    # An experiment's names for files without a header do not matter for folders.
    assert len(rows(TableData(str(folder / "train"), format=TableFormat(columns=["label", "text"])))) == 3


def test_each_kind_of_error(folder):
    train = folder / "train"
    (train / "neg" / "empty.txt").write_bytes(b"")
    (train / "neg" / "odd.txt").write_bytes(b"\xff")
    (train / "neg" / "blank.txt").write_bytes(b" \n")
    with pytest.raises(DataError, match=r"train, file neg/blank\.txt: 'text' is empty"):
        TableData(str(train)).load()
    loaded = TableData(str(train), on_bad_row="skip").load()
    assert (len(loaded.splits["train"]), loaded.facts["train"].num_skipped) == (3, 3)
    assert next(skipped_rows(loaded.facts))["file"] == str(train)
    (train / "neg" / "more").mkdir()
    with pytest.raises(DataError, match=r"neg/more is a folder within the class 'neg'"):
        TableData(str(train), on_bad_row="skip").load()
    with pytest.raises(DataError, match=r"train/pos is a folder without sub-folders"):
        TableData(str(train / "pos")).load()
    with pytest.raises(
        DataError, match=r"a folder per class: no column 'review' among \['text', 'label', 'file', 'path'\]"
    ):
        TableData(str(train), text_column="review").load()


def test_texts_in_another_encoding(folder):
    (folder / "train/pos/10").write_bytes("ça va".encode("latin-1"))
    with pytest.raises(DataError, match=r"pos/10, line 1: byte 0xe7 at position 1 is not UTF-8"):
        TableData(str(folder / "train")).load()
    data = TableData(str(folder / "train"), format=TableFormat(encoding="latin-1"))
    assert rows(data)[2] == ("ça va", "pos")
