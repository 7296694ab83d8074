"""Prediction reads the files that training reads: their formats and columns, with and without answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from framework.config.command_schema import InputColumns, PredictConfig
from framework.config.shared_schema import PrecisionConfig
from framework.data.examples.splits import SplitFiles
from framework.data.examples.table import TableData
from framework.errors import DataError
from framework.inference.input_rows import read_input_rows
from framework.tasks.multiple_choice.data import ChoiceData
from framework.tasks.question_answering.data import QuestionData
from framework.tasks.relation_extraction.data import RelationData
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.tagged_rows import ConllFormat
from framework.tasks.translation.data import ParallelTextData

RELATIONS = RelationData("")
MARKED = "<e1>Ann Lee</e1> founded <e2>Acme</e2>"
TOKENS = ["Ann", "Lee", "founded", "Acme"]
TACRED = {"id": "t1", "token": TOKENS, "subj_start": 0, "subj_end": 1, "obj_start": 3, "obj_end": 3}
FEW_REL = {"tokens": TOKENS, "h": ["ann lee", "Q1", [[0, 1]]], "t": ["acme", "Q2", [[3]]]}
OPEN_NRE = {"text": "Ann Lee founded Acme", "h": {"pos": [0, 7]}, "t": {"pos": [16, 20]}}
ARTICLE = {
    "paragraphs": [
        {"context": "Ann founded Acme.", "qas": [{"id": "q1", "question": "Who?"}, {"id": "q2", "question": " "}]},
        {"context": "Ben left.", "qas": [{"id": "q3", "question": "Who left?", "answers": [{"text": "Ben"}]}]},
    ]
}


class Fields:
    """Task that reads these fields and predicts any row."""

    list_fields = ("choices", "tokens")

    def __init__(self, *field_choices: tuple[str, ...], text_format: str | None = None) -> None:
        self.field_choices = field_choices
        self.text_format = text_format

    def check_row(self, row: Any, tokenizer: Any) -> None:
        pass


TEXT = Fields(("text",))


def ask(file: Path, content: str, task: Fields, layout: SplitFiles | None, **settings: Any) -> list[tuple[Any, Any]]:
    """Returns the values and the kept columns of each row; None and the error for a bad one."""
    file.write_text(content, encoding="utf-8")
    config = PredictConfig(run="r", precision=PrecisionConfig(name="fp32"), input=str(file), **settings)
    input_rows = read_input_rows(config, task, None, layout)  # type: ignore[arg-type]
    return [(each.row.values, each.kept) if each.row else (None, each.error) for each in input_rows]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("is_labelled", [True, False])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("tacred.json", [TACRED, TACRED | {"relation": "founder"}]),
        ("tacred.jsonl", [TACRED]),
        ("list.json", [FEW_REL]),
        ("few_rel.json", {"P1": [FEW_REL], "P2": [FEW_REL]}),
        ("open_nre.txt", [OPEN_NRE, OPEN_NRE]),
    ],
)
def test_json_with_the_positions_of_entities(tmp_path, name, rows, is_labelled):
    if is_labelled and isinstance(rows, list):
        rows = [{"relation": "founder", **row} for row in rows]
    content = json.dumps(rows) if name in ("list.json", "few_rel.json", "tacred.json") else lines(*rows)
    actual = ask(tmp_path / name, content, TEXT, RELATIONS)
    assert actual == [({"text": MARKED}, {"text": MARKED})] * 2 or len(rows) == len(actual) == 1
    assert actual[0] == ({"text": MARKED}, {"text": MARKED})


def test_columns_of_relations_are_kept_unchanged(tmp_path):
    actual = ask(tmp_path / "a.json", json.dumps([TACRED]), TEXT, RELATIONS, keep_columns=["id", "subj_end"])
    assert actual == [({"text": MARKED}, {"text": MARKED, "id": "t1", "subj_end": 1})]
    actual = ask(tmp_path / "a.jsonl", lines({"sentence": MARKED}), TEXT, RelationData("", text_column="sentence"))
    assert actual == [({"text": MARKED}, {"sentence": MARKED})]


def test_a_bad_relation_is_answered_at_its_index(tmp_path):
    bad = TACRED | {"obj_end": 9}
    content = lines(TACRED, bad, TACRED)
    with pytest.raises(DataError, match=r"row 2 \(line 2\): obj_start and obj_end is \[3, 9\]"):
        ask(tmp_path / "a.jsonl", content, TEXT, RELATIONS)
    actual = ask(tmp_path / "a.jsonl", content, TEXT, RELATIONS, on_bad_row="skip")
    assert [values is None for values, _ in actual] == [False, True, False] and "[3, 9]" in actual[1][1]


@pytest.mark.parametrize(
    "content",
    [
        f'1\t"{MARKED}"\nFounder(e1,e2)\nComment: none\n\n7\t"{MARKED}"\nOther\nComment:\n',
        f'1\t"{MARKED}"\n7\t"{MARKED}"\n',
        f'1\t"{MARKED}"\n\n7\t"{MARKED}"\nComment: no label\n',
    ],
    ids=["labelled", "test file", "comment"],
)
def test_files_of_semeval(tmp_path, content):
    actual = ask(tmp_path / "a.txt", content, TEXT, RELATIONS, keep_columns=["id", "label"])
    labels = ["Founder(e1,e2)", "Other"] if "Founder" in content else [None, None]
    assert [values for values, _ in actual] == [{"text": MARKED}] * 2
    assert [kept for _, kept in actual] == [
        {"text": MARKED, "id": number, "label": label} for number, label in zip("17", labels, strict=True)
    ]


def test_columns_of_the_command_line_precede_those_of_training(tmp_path):
    layout, row = TableData("", text_column="sentence"), {"sentence": "a", "text": "b", "review": "c"}
    file = tmp_path / "a.jsonl"
    assert ask(file, lines(row), TEXT, layout) == [({"text": "a"}, {"sentence": "a"})]
    assert ask(file, lines({"text": "b"}), TEXT, layout) == [({"text": "b"}, {"text": "b"})]
    assert ask(file, lines(row), TEXT, layout, columns={"text": "review"}) == [({"text": "c"}, {"review": "c"})]
    assert ask(file, lines(row), TEXT, None) == [({"text": "b"}, {"text": "b"})]
    with pytest.raises(DataError, match="no column 'sentence' among"):
        ask(file, lines({"title": "b"}), TEXT, layout)
    pairs = TableData("", text_column="s1", pair_column="s2")
    assert ask(tmp_path / "a.csv", "s1,s2\na,b\n", Fields(("text", "pair")), pairs)[0][0] == {"text": "a", "pair": "b"}


def test_choices_in_several_columns(tmp_path):
    layout = ChoiceData("", question_column="start", choice_columns=["end0", "end1", "end2"])
    task = Fields(("question", "choices"))
    (actual,) = ask(tmp_path / "a.csv", "id,start,end0,end1,end2\n5,Why?,x,y,\n", task, layout, keep_columns=["id"])
    assert actual[0] == {"question": "Why?", "choices": '["x", "y"]'}
    assert actual[1] == {"start": "Why?", "end0": "x", "end1": "y", "end2": "", "id": "5"}
    row = {"question": "Why?", "choices": ["x", "y"]}
    assert ask(tmp_path / "a.jsonl", lines(row), task, layout)[0][0] == {"question": "Why?", "choices": '["x", "y"]'}


def test_questions_of_squad(tmp_path):
    task, file = Fields(("question", "context")), tmp_path / "dev.json"
    content = json.dumps({"version": "2.0", "data": [ARTICLE]})
    with pytest.raises(DataError, match="article 1, paragraph 1, question 'q2': 'question' is empty"):
        ask(file, content, task, QuestionData(""))
    actual = ask(file, content, task, QuestionData(""), on_bad_row="skip", keep_columns=["id"])
    assert actual[0][1] == {"question": "Who?", "context": "Ann founded Acme.", "id": "q1"}
    assert actual[1][0] is None and actual[2][0] == {"question": "Who left?", "context": "Ben left."}
    named = QuestionData("", columns={"question": "q"})
    assert ask(tmp_path / "a.jsonl", lines({"q": "Who?", "context": "Ann."}), task, named)[0][0]["question"] == "Who?"


def test_lines_to_translate(tmp_path):
    layout = ParallelTextData("train.en", train_targets="train.de")
    assert [kept for _, kept in ask(tmp_path / "test.en", "One.\nTwo, three.\n", TEXT, layout)] == [
        {"text": "One."},
        {"text": "Two, three."},
    ]
    assert ask(tmp_path / "a.csv", "source\nOne.\n", TEXT, layout)[0][0] == {"text": "One."}


def test_words_are_read_from_the_column_of_training(tmp_path):
    task, file = Fields(("text",), ("tokens",), text_format="conll"), tmp_path / "a.conllu"
    layout = TaggedData("", conll=ConllFormat(word_column=1, separator="tab"))
    content = "1\tNew York\tB-place\n2\tsang\tO\n"
    assert ask(file, content, task, layout)[0][1] == {"tokens": ["New York", "sang"]}
    given = InputColumns(word_column=0)
    assert ask(file, content, task, layout, conll=given)[0][1] == {"tokens": ["1", "2"]}
    rows = [{"text": "ada sang", "label": {"person": {"ada": [[0, 2]]}}}]
    assert ask(tmp_path / "cluener.data", lines(*rows, *rows), task, layout)[1][0] == {"text": "ada sang"}
