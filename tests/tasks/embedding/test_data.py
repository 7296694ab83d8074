"""Rows of pairs, of scored pairs and of labelled texts, and an error with file and row for every bad row."""

import json
import re

import pytest

from framework.errors import ConfigError, DataError
from framework.tasks.embedding.data import TextPairData


def write(folder, text, name="rows.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_pairs_and_their_hard_negatives(tmp_path):
    text = 'text,pair,worse,worst\na,b,c,"[""d"", ""e"", "" ""]"\nf,g,,[h] i\nj,k,[],"[1]"\n'
    rows = TextPairData(write(tmp_path, text), negative_columns=["worse", "worst"]).load().splits["train"]
    # A list, a text that only begins like one, and a list of something else, which is also a text.
    assert [row.texts for row in rows] == [("a", "b", "c", "d", "e"), ("f", "g", "[h] i"), ("j", "k", "[1]")]
    assert {row.answer for row in rows} == {None}


def test_json_lists_are_several_negatives(tmp_path):
    lines = [{"text": "a", "pair": "b", "not": ["c", "d"]}, {"text": "e", "pair": "f", "not": []}]
    path = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "rows.jsonl")
    rows = TextPairData(path, negative_columns=["not"]).load().splits["train"]
    assert [row.texts for row in rows] == [("a", "b", "c", "d"), ("e", "f")]


def test_scored_pairs_and_labelled_texts(tmp_path):
    scored = TextPairData(write(tmp_path, "text,pair,score\na,b,2.5\nc,d,0\n"), score_column="score")
    assert scored.kind == "scored"
    assert [(row.texts, row.answer) for row in scored.load().splits["train"]] == [(("a", "b"), 2.5), (("c", "d"), 0.0)]
    labelled = TextPairData(
        write(tmp_path, "text,label\na, x\nb,y\n", "labels.csv"), pair_column=None, label_column="label"
    )
    assert labelled.kind == "labelled"
    assert [(row.texts, row.answer) for row in labelled.load().splits["train"]] == [(("a",), "x"), (("b",), "y")]


def test_rows_of_one_text_fall_into_one_split(tmp_path):
    lines = "".join(f"question {number % 50},answer {number}\n" for number in range(200))
    splits = TextPairData(write(tmp_path, "text,pair\n" + lines), validation_fraction=0.3).load().splits
    queries = {split: {row.texts[0] for row in rows} for split, rows in splits.items()}
    assert queries["train"].isdisjoint(queries["validation"])
    assert sum(map(len, splits.values())) == 200


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("a,,1", "rows.csv, row 3 (line 4): 'pair' is empty"),
        (" ,b,1", "rows.csv, row 3 (line 4): 'text' is empty"),
        ("a,b,", "rows.csv, row 3 (line 4): 'score' is empty"),
        ("a,b,high", "rows.csv, row 3 (line 4): 'score' is 'high'. It must be a number"),
        ("a,b,nan", "rows.csv, row 3 (line 4): 'score' is 'nan'. It must be a finite number"),
    ],
)
def test_bad_rows_are_named_or_omitted(tmp_path, row, fault):
    path = write(tmp_path, f"text,pair,score\na,b,1\nc,d,2\n{row}\n")
    with pytest.raises(DataError) as caught:
        TextPairData(path, score_column="score").load()
    assert fault in str(caught.value)
    assert len(TextPairData(path, score_column="score", on_bad_row="skip").load().splits["train"]) == 2


def test_at_least_two_different_texts_or_labels_are_required(tmp_path):
    path = write(tmp_path, "text,label\na,x\nb,x\n")
    with pytest.raises(DataError, match="all 2 training rows have the label 'x'"):
        TextPairData(path, pair_column=None, label_column="label").load()


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"label_column": "label"}, "Set one of the two to null, or both for single texts"),
        ({"pair_column": None, "label_column": "label", "score_column": "score"}, "Only pairs of texts have scores"),
        ({"score_column": "score", "negative_columns": ["worse"]}, "rows are scored"),
    ],
)
def test_columns_are_those_of_one_kind(columns, fault):
    with pytest.raises(ConfigError, match=fault):
        TextPairData("rows.csv", **columns)


def test_scores_of_a_teacher_in_tables_and_json(tmp_path):
    table = write(tmp_path, 'text,pair,not,scores\na,b,"[""c"", ""d""]","[9.5, 1, -2]"\ne,f,,[3]\n')
    lines = [{"text": "a", "pair": "b", "not": ["c", "d"], "scores": [9.5, 1, -2]}]
    lines += [{"text": "e", "pair": "f", "not": [], "scores": [3]}]
    objects = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "rows.jsonl")
    for path in (table, objects):
        rows = TextPairData(path, negative_columns=["not"], teacher_column="scores").load().splits["train"]
        assert [row.teacher_scores for row in rows] == [(9.5, 1.0, -2.0), (3.0,)]


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ('"[1, 2, 3]"', "row 2 (line 3): 'scores' has 3 scores for 2 candidates"),
        ("[1]", "row 2 (line 3): 'scores' has 1 scores for 2 candidates"),
        ('"[1, ""x""]"', "row 2 (line 3): 'scores' is '[1, \"x\"]'. It must be a JSON list of finite numbers"),
        ("1.5", "row 2 (line 3): 'scores' is '1.5'. It must be a JSON list"),
    ],
)
def test_a_teacher_with_another_number_of_scores_is_named_with_its_row(tmp_path, cell, fault):
    path = write(tmp_path, f'text,pair,not,scores\na,b,c,"[1, 2]"\nd,e,f,{cell}\n')
    with pytest.raises(DataError, match=re.escape(fault)):
        TextPairData(path, negative_columns=["not"], teacher_column="scores").load()


def test_a_teacher_scores_matches_with_negatives_only():
    with pytest.raises(ConfigError, match=r"data\.teacher_column is x, but the rows are matches with neg"):
        TextPairData("rows.csv", teacher_column="x")
