"""Privacy units of training rows, read from a column of a table or of JSON objects."""

import json
from pathlib import Path

import pytest

from framework.data.examples.table import TableData
from framework.errors import DataError
from framework.tasks.question_answering.data import QuestionData
from framework.tasks.token_classification.data import TaggedData

ROWS = "text,label,user\na film,1,ada\nbad text,0,bela\nfine words,1,ada\n"


def table(folder: Path, text: str = ROWS, **options) -> TableData:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    (folder / "other.csv").write_text("text,label\nnew,1\n", encoding="utf-8")
    return TableData(str(folder / "rows.csv"), validation=str(folder / "other.csv"), **options)


def test_units_of_a_table_are_those_of_the_rows_in_train(tmp_path: Path):
    read = table(tmp_path).with_units("user").load()
    assert list(read.facts["train"].units.values()) == ["ada", "bela", "ada"]
    assert [row.location for row in read.splits["train"]] == list(read.facts["train"].units)
    assert not read.facts["validation"].units  # its file needs no column of units
    assert not table(tmp_path).load().facts["train"].units
    assert "ada" not in json.dumps(read.facts["train"].as_json())


def test_skipped_rows_need_no_unit(tmp_path: Path):
    text = ROWS.replace("bad text,0,bela", ",0,")
    read = table(tmp_path, text + "last,0,cem\n", on_bad_row="skip").with_units("user").load()
    assert list(read.facts["train"].units.values()) == ["ada", "ada", "cem"]


def test_a_missing_column_or_unit_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no column 'customer' among"):
        table(tmp_path).with_units("customer").load()
    with pytest.raises(DataError, match=r"row 2 \(line 3\): the column 'user' is empty"):
        table(tmp_path, ROWS.replace("bela", " ")).with_units("user").load()


def test_units_of_json_objects(tmp_path: Path):
    rows = [
        {"question": f"who {number}?", "context": f"ada has {number}", "user": number % 2,
         "answers": [{"text": "ada", "answer_start": 0}]}
        for number in range(3)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = QuestionData(str(tmp_path / "rows.jsonl"))
    assert list(data.with_units("user").load().facts["train"].units.values()) == ["0", "1", "0"]
    with pytest.raises(DataError, match="no column 'customer' among"):
        data.with_units("customer").load()


def test_files_without_columns_have_no_units(tmp_path: Path):
    (tmp_path / "rows.conll").write_text("ada\tB-person\nsang\tO\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"sentence 1.*: the file has no columns, but privacy\.unit_column is user"):
        TaggedData(str(tmp_path / "rows.conll")).with_units("user").load("words")
