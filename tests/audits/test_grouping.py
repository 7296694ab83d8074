"""Tests of groups of rows: columns of files, terms, sizes, and bad input."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from framework.audits.grouping import build_grouping, column_values, read_terms, split_records, term_values
from framework.audits.terms import GroupTerms
from framework.data.examples.table import LabelledText, TableData
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.tasks.multiple_choice.data import ChoiceData


@dataclass
class Source:
    records: list
    length: int

    def __len__(self) -> int:
        return self.length


def test_columns_are_those_of_the_rows_of_a_split(tmp_path):
    lines = [f"text {n},{n % 2},{'fm'[n % 2]},{n // 4 or ''}" for n in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,gender,age", *lines, "broken"]) + "\n")
    data = TableData(train=str(tmp_path / "rows.csv"), validation_fraction=0.5, on_bad_row="skip")
    records = data.load().splits["validation"]
    gender, age = column_values(records, ["gender", "age"], None)
    numbers = [int(record.text.split()[1]) for record in records]
    assert gender == ["fm"[number % 2] for number in numbers]
    assert age == [str(number // 4) if number >= 4 else None for number in numbers]


def test_columns_of_a_file_with_a_format(tmp_path):
    (tmp_path / "rows.csv").write_text("one;0;f\ntwo;1;m\n")
    form = TableFormat(columns=["text", "label", "gender"], delimiter=";")
    data = TableData(train=str(tmp_path / "rows.csv"), format=form)
    assert column_values(data.load().splits["train"], ["gender"], form, ["text"]) == [["f", "m"]]


def test_columns_beside_lists_of_texts(tmp_path):
    rows = [{"question": f"q {n}", "choices": ["a", "b"], "label": n, "gender": "fm"[n]} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ChoiceData(train=str(tmp_path / "rows.jsonl"))
    texts = list(data.field_columns.values())
    assert "choices" in texts
    assert column_values(data.load().splits["train"], ["gender"], None, texts) == [["f", "m"]]


def test_a_missing_column_is_an_error(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\none,0\ntwo,1\n")
    records = TableData(train=str(tmp_path / "rows.csv")).load().splits["train"]
    with pytest.raises(DataError, match="gender"):
        column_values(records, ["gender"], None)
    (tmp_path / "rows.csv").write_text("text,label,gender\none,0,f\n")
    with pytest.raises(DataError, match=r"row 2 \(line 3\) is not in the file any more"):
        column_values(records, ["gender"], None)


def test_small_groups_have_no_members():
    grouping = build_grouping("gender", ["f"] * 3 + ["x"] + ["m"] * 2 + [None, "f"], 2)
    assert {group: items.tolist() for group, items in grouping.members.items()} == {"f": [0, 1, 2, 7], "m": [4, 5]}
    assert (grouping.too_small, grouping.num_outside) == ({"x": 1}, 1)


def test_a_comparison_needs_two_large_groups():
    with pytest.raises(DataError) as error:
        build_grouping("gender", ["f"] * 60 + ["m"] * 49 + [None], 50)
    assert str(error.value) == (
        "gender has 1 group with at least 50 rows (rows of the groups: f 60, m 49). A comparison needs at least 2. "
        "Give a larger file, or lower audit.groups.min_rows."
    )


def test_rows_with_terms_of_several_groups_belong_to_none():
    terms = GroupTerms({"f": ["she"], "m": ["he"]}, "terms.yaml")
    assert term_values(["She sings", "he and she", "nobody", "HE"], terms) == (["f", None, None, "m"], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"terms.yaml cannot be read \(No such file or directory\)"),
        ("a: [one\n", "terms.yaml cannot be read"),
        ("a: one\nb: two\n", "terms.yaml is no mapping of groups to lists of words"),
        ("a: [one]\nb: [no]\n", "terms.yaml is no mapping of groups to lists of words"),
        (
            "a: [she]\nb: [She]\n",
            "the term 'She' of the group 'a' overlaps with 'She' of 'b'",
        ),
    ],
)
def test_files_without_terms_are_rejected(tmp_path, content, message):
    if content is not None:
        (tmp_path / "terms.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_terms(str(tmp_path / "terms.yaml"))


def test_a_split_without_rows_is_rejected():
    rows = [LabelledText("rows.csv, row 1", "text", None, "0")]
    assert split_records(Source(rows, 1), "validation") == rows
    for source in (Source([], 1), Source([0.5], 1), np.zeros(2)):
        with pytest.raises(ConfigError, match="the split train keeps no labelled rows"):
            split_records(source, "train")
