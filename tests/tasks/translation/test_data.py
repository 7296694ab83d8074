"""Pairs of texts from two files or one table: aligned, checked, split."""

import gzip
from pathlib import Path

import pytest

from framework.data.facts import skipped_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.tasks.translation.data import ParallelTextData


def write(path: Path, *lines: str) -> str:
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def pairs(data: ParallelTextData, split: str = "train") -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in data.load().splits[split]]


def test_line_by_line_plain_and_compressed(tmp_path):
    data = ParallelTextData(
        train=write(tmp_path / "a.en.gz", "one", "two  words ", "three"),
        train_targets=write(tmp_path / "a.de", "eins", "zwei\r", "drei"),
        validation=write(tmp_path / "b.en", "four"),
        validation_targets=write(tmp_path / "b.de.gz", "vier"),
    )
    assert pairs(data) == [("one", "eins"), ("two  words ", "zwei"), ("three", "drei")]
    assert pairs(data, "validation") == [("four", "vier")]
    assert data.load().splits["train"][1].location == f"{tmp_path / 'a.en.gz'}, line 2"


def test_columns_of_a_table(tmp_path):
    train = write(tmp_path / "a.csv", "en,de,id", '"one, two",eins,1', "three,drei,2")
    data = ParallelTextData(train=train, source_column="en", target_column="de")
    assert pairs(data) == [("one, two", "eins"), ("three", "drei")]


def test_a_table_for_training_and_lines_for_the_test(tmp_path):
    data = ParallelTextData(
        train=write(tmp_path / "a.csv", "source,target", "one,eins"),
        test=write(tmp_path / "b.en", "two"),
        test_targets=write(tmp_path / "b.de", "zwei"),
    )
    assert (pairs(data), pairs(data, "test")) == ([("one", "eins")], [("two", "zwei")])


@pytest.mark.parametrize(
    ("more", "numbers"), [("a.en", "3 lines and .*a.de has 2"), ("a.de", "2 lines and .*de has 3")]
)
def test_unequal_numbers_of_lines_are_an_error(tmp_path, more, numbers):
    for name in ("a.en", "a.de"):
        write(tmp_path / name, *["text"] * (3 if name == more else 2))
    data = ParallelTextData(train=str(tmp_path / "a.en"), train_targets=str(tmp_path / "a.de"))
    with pytest.raises(DataError, match=rf"a.en has {numbers}\. Each line of one file must translate the same line"):
        data.load()


def test_empty_texts_are_an_error_or_are_omitted(tmp_path):
    files = {
        "train": write(tmp_path / "a.en", "one", "two", " ", "four"),
        "train_targets": write(tmp_path / "a.de", "eins", "", "drei", "vier"),
    }
    with pytest.raises(DataError, match=r"a\.en, line 2: the target is empty\. A pair needs both texts"):
        ParallelTextData(**files).load()
    read = ParallelTextData(**files, on_empty="skip").load()
    assert [(pair.source, pair.target) for pair in read.splits["train"]] == [("one", "eins"), ("four", "vier")]
    assert [row["place"] for row in skipped_rows(read.facts)] == ["line 2", "line 3"]
    nothing = {"train": write(tmp_path / "b.en", " "), "train_targets": write(tmp_path / "b.de", "x")}
    with pytest.raises(DataError, match=r"b\.en has no usable row\. The first error:"):
        ParallelTextData(**nothing, on_empty="skip").load()


def test_all_translations_of_a_source_fall_into_one_split(tmp_path):
    rows = [f"text {number // 2},{number}" for number in range(400)]
    data = ParallelTextData(train=write(tmp_path / "a.csv", "source,target", *rows), validation_fraction=0.5)
    train, validation = ({source for source, _ in pairs(data, split)} for split in ("train", "validation"))
    assert not train & validation
    assert min(len(train), len(validation)) > 50
    assert len(pairs(data)) == 2 * len(train)


def test_repeats_keep_the_first_translation_and_none_of_the_evaluated_ones(tmp_path):
    data = ParallelTextData(
        train=write(tmp_path / "a.csv", "source,target", "one,eins", "one,ein", "two,zwei", "three,drei"),
        test=write(tmp_path / "b.csv", "source,target", "two,beide"),
        deduplicate=True,
    )
    assert pairs(data) == [("one", "eins"), ("three", "drei")]


def test_targets_without_sources_are_an_error():
    with pytest.raises(ConfigError, match=r"test_targets is x\.de, but test is null"):
        ParallelTextData(train="a.csv", test_targets="x.de")


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.de").write_bytes(b"eins\nzw\xe9i\n")
    data = ParallelTextData(train=write(tmp_path / "a.en", "one", "two"), train_targets=str(tmp_path / "a.de"))
    with pytest.raises(DataError, match=r"a\.de, line 2: byte 0xe9"):
        data.load()


def test_a_table_without_a_header_and_other_encodings(tmp_path):
    write(tmp_path / "deu.txt", "Go.\tGeh.\tCC-BY", "Hi.\tHallo!\tCC-BY")
    data = ParallelTextData(
        str(tmp_path / "deu.txt"), format=TableFormat(columns=["source", "target", "licence"], quote=None)
    )
    assert pairs(data) == [("Go.", "Geh."), ("Hi.", "Hallo!")]
    (tmp_path / "a.en").write_bytes(b"five\n")
    (tmp_path / "a.de").write_bytes("fünf\n".encode("latin-1"))
    files = {"train": str(tmp_path / "a.en"), "train_targets": str(tmp_path / "a.de")}
    assert pairs(ParallelTextData(**files, format=TableFormat(encoding="latin-1"))) == [("five", "fünf")]
    with pytest.raises(DataError, match=r"a\.de, line 1: byte 0xfc at position 2 is not UTF-8"):
        ParallelTextData(**files, format=None).load()
