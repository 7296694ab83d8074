"""Questions with choices: lists and columns, labels by index and by text, errors of rows."""

import json
from pathlib import Path

import pytest

from framework.errors import ConfigError, DataError
from framework.tasks.multiple_choice.data import ChoiceData

GOOD = {"question": "why?", "choices": ["so", "no", 7], "label": 1}


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_lists(tmp_path):
    path = write(tmp_path / "c.jsonl", GOOD, {**GOOD, "question": "how?", "choices": ["x", "y"], "label": "0"})
    first, second = ChoiceData(path).load().splits["train"]
    assert (first.question, first.choices, first.right) == ("why?", ("so", "no", "7"), 1)
    assert (second.choices, second.right, second.context) == (("x", "y"), 0, None)
    path = write(tmp_path / "t.jsonl", {**GOOD, "label": "7", "on": "a text"})
    (example,) = ChoiceData(path, label_kind="text", context_column="on").load().splits["train"]
    assert (example.right, example.context) == (2, "a text")


def test_columns(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("question,a,b,c,label\nwhy?,so,no,,1\nhow?,x,y,z,2\n")
    first, second = ChoiceData(str(path), choice_columns=["a", "b", "c"]).load().splits["train"]
    assert (first.choices, first.right) == (("so", "no"), 1)
    assert (second.choices, second.right) == (("x", "y", "z"), 2)
    path.write_text('question,choices,label\nwhy?,"[""so"", ""no""]",0\n')
    assert ChoiceData(str(path)).load().splits["train"][0].choices == ("so", "no")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "'question' is empty"),
        ({"choices": ["so"]}, "the choices are 'so'. They must be at least two"),
        ({"choices": []}, "the choices are empty. They must be at least two"),
        ({"choices": ["so", " "]}, "the choices are 'so', ' '"),
        ({"choices": ["so", "so "]}, "the choices are 'so', 'so '"),
        ({"choices": "so"}, "the choices are 'so'. They must be a list"),
        ({"label": 3}, "the label is '3'. It must be one of 0, 1, 2"),
        ({"label": -1}, "the label is '-1'. It must be one of 0, 1, 2"),
        ({"label": "no"}, "the label is 'no'. It must be one of 0, 1, 2"),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path, change, message):
    path = write(tmp_path / "c.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(DataError) as caught:
        ChoiceData(path).load()
    assert str(caught.value).startswith(f"{path}, row 2 (line 2): {message}")
    loaded = ChoiceData(path, on_bad_row="skip").load()
    assert (loaded.facts["train"].rows, loaded.facts["train"].num_skipped, loaded.facts["train"].read) == (1, 1, 2)


def test_settings_and_contradictions(tmp_path):
    with pytest.raises(ConfigError, match=r"choice_columns is \['a', 'a'\]"):
        ChoiceData("x", choice_columns=["a", "a"])
    # The same choices in another order with the same right one, and with another right one.
    same = {"question": "why?", "choices": ["no", "so", 7], "label": 0}
    other = {"question": "how?", "choices": ["x", "y"], "label": 0}
    path = write(tmp_path / "c.jsonl", GOOD, same, other, {**other, "label": 1})
    loaded = ChoiceData(path, deduplicate=True).load()
    assert loaded.facts["train"].left_out == {"repeated": 1, "contradicting": 2}


def test_nan_is_no_choice(tmp_path):
    path = write(tmp_path / "c.jsonl", GOOD, {**GOOD, "choices": ["so", float("nan")]})
    with pytest.raises(DataError, match=r"line 2: 'choices' is \['so', nan\]\. It must be text, a finite number or a"):
        ChoiceData(path).load()
    cells = tmp_path / "c.csv"
    cells.write_text('question,choices,label\nwhy?,"[""so"", NaN]",0\n')
    with pytest.raises(DataError, match=r"row 1 \(line 2\): the choices are '\[\"so\", NaN\]'\. They must be a list"):
        ChoiceData(str(cells)).load()
