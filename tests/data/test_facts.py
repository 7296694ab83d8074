"""The counts of a run's data, from real files through a task, and the warnings that follow."""

import json
from pathlib import Path

import pytest

from framework.callbacks.data_lines import data_lines
from framework.data.examples.table import TableData
from framework.data.fact_warnings import warnings_of
from framework.data.facts import Cutting, SplitFacts, facts_of, without_texts
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tracking.analysis.report import write_report
from framework.tracking.data_facts import read_data_facts, write_data_facts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return Tokenizer.from_folder(folder)


def read(tokenizer: Tokenizer, path: Path, rows: list[tuple[str, object]], **options) -> dict[str, SplitFacts]:
    """Returns the facts of a run on these rows, whose sequences have room for three words."""
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    data = TableData(str(path), on_bad_row="skip", **options)
    return facts_of(SequenceClassificationTask(max_length=5).build_sources(data, tokenizer, seed=0))


ROWS: list[tuple[str, object]] = [
    ("a b c", "x"),
    ("a b c d e", "x"),
    ("c", "y"),
    ("a b c", "x"),  # a repeat
    ("d", "x"),
    ("d", "y"),  # contradicts the row above
    ("", "x"),
    ("e", None),
    ("e", float("nan")),
]


def test_the_facts_by_hand(tokenizer, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"text": "b", "label": "y"}\n{"text": "b", "label": "z"}\n')
    path = tmp_path / "rows.jsonl"
    facts = read(tokenizer, path, ROWS, validation=str(held_out), deduplicate=True, labels=["x", "y"])
    train, validation = facts["train"], facts["validation"]
    assert (train.rows, train.read, train.num_skipped, dict(train.left_out)) == (
        3,
        9,
        3,
        {"repeated": 1, "contradicting": 2},
    )
    assert (train.labels, validation.labels) == ({"x": 2, "y": 1}, {"x": 0, "y": 1})
    assert train.cutting == Cutting(max_length=5, texts=3, cut=1, tokens=9, lost=2)
    assert (validation.rows, validation.read, validation.num_skipped) == (1, 2, 1)
    assert list(data_lines(facts)) == [
        "data: train       3 rows of 9 in rows.jsonl (3 skipped, 2 contradicting, 1 repeated); x: 2, y: 1; 1 of 3 "
        "texts cut at 5 tokens (22.2% of the tokens lost)",
        "data: validation  1 rows of 2 in held_out.jsonl (1 skipped); x: 0, y: 1",
    ]


def test_every_row_of_a_file_is_accounted_for(tokenizer, tmp_path):
    rows: list[tuple[str, object]] = [
        (f"{'abcdefgh'[index % 8]} {index // 5}", "xy"[index % 2]) for index in range(200)
    ]
    facts = read(
        tokenizer,
        tmp_path / "rows.jsonl",
        [*rows, *ROWS],
        validation_fraction=0.2,
        test_fraction=0.2,
        deduplicate=True,
        max_train_rows=50,
    )
    train = facts["train"]
    assert train.read == 209 and train.left_out["beyond max_train_rows"] > 0
    assert train.read == train.num_skipped + sum(train.left_out.values()) + sum(each.rows for each in facts.values())
    assert facts["test"].read == 0 and not facts["test"].file


def test_the_folder_and_the_report_contain_them(tokenizer, tmp_path):
    facts = read(tokenizer, tmp_path / "rows.jsonl", ROWS)
    write_data_facts(tmp_path, facts)
    actual = read_data_facts(tmp_path)
    assert actual["splits"]["train"]["labels"] == {"x": 4, "y": 2}
    assert (actual["splits"]["train"]["read"], actual["splits"]["train"]["skipped"]) == (9, 3)
    skipped = [json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text().splitlines()]
    assert [(row["split"], row["line"]) for row in skipped] == [("train", 7), ("train", 8), ("train", 9)]
    assert {row["file"] for row in skipped} == {str(tmp_path / "rows.jsonl")}
    assert skipped[1]["reason"].startswith("'label' is None. It must be text")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<th>rows skipped</th>" in page and "3 of 9 rows of" in page
    write_data_facts(tmp_path, read(tokenizer, tmp_path / "rows.jsonl", ROWS[:6]))
    assert not (tmp_path / "skipped_rows.jsonl").exists()
    write_data_facts(tmp_path, {"train": SplitFacts(1, file="\udcff.csv", skipped=["\udcff.csv, row 1: bad"])})
    assert read_data_facts(tmp_path)["splits"]["train"]["file"] == "\udcff.csv"
    (tmp_path / "data.json").write_text("")
    assert read_data_facts(tmp_path) == {}


@pytest.mark.parametrize(
    ("rows", "warnings"),
    [
        ([("a", f"id {index}") for index in range(12)], ["train has 12 different labels in 12 rows"]),
        ([("a", f"id {index % 6}") for index in range(12)], []),
        (
            [("a b c d", "x"), ("a", "x"), ("b", "y")],
            ["1 of 3 texts of train are cut at 5 tokens: 17%"],
        ),
        ([("a", "0"), ("a", 0.0), ("b", 1)], ["the labels '0', '0.0', which read alike but are 2 labels"]),
        ([("a", "caf\u00e9"), ("a", "cafe\u0301")], [r"the labels 'cafe\u0301', 'caf\xe9', which read alike"]),
        ([("a", "Good"), ("a", "good "), ("a", "bad")], ["the labels 'Good', 'good', which read alike"]),
        ([("a", "nan"), ("a", "x")], ["the label 'nan', a common spelling of a missing value"]),
    ],
)
def test_warnings(tokenizer, tmp_path, rows, warnings):
    actual = warnings_of(read(tokenizer, tmp_path / "rows.jsonl", rows))
    assert len(actual) == len(warnings)
    assert all(words in warning for words, warning in zip(warnings, actual, strict=True))


def test_numbers_and_several_labels_have_their_own_facts(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "1"}\n{"text": "b", "label": "2.5"}\n')
    regression = SequenceClassificationTask(problem="regression").build_sources(TableData(str(path)), tokenizer, seed=0)
    train = facts_of(regression)["train"]
    assert (dict(train.labels), train.notes) == ({}, {"numbers": "1 to 2.5, mean 1.75"})
    path.write_text('{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n{"text": "b", "label": ["x"]}\n')
    several = SequenceClassificationTask(problem="multi_label").build_sources(TableData(str(path)), tokenizer, seed=0)
    train = facts_of(several)["train"]
    assert (train.labels, train.notes) == ({"x": 2, "y": 1}, {"rows without a label": "1"})


def test_a_label_without_training_rows_is_reported(tokenizer, tmp_path):
    facts = read(tokenizer, tmp_path / "rows.jsonl", [("a", "x"), ("b", "y")], labels=["x", "y", "z"])
    assert warnings_of(facts) == [
        "No row of train has the label 'z'. A label without training rows is never learned. Add rows."
    ]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.csv, row 3: 'label' is 'x', it is wrong.", "a.csv, row 3: 'label' is (not shown), it is wrong."),
        ("a.csv, row 3: the label 'x' is none of a, b.", "a.csv, row 3: the label (not shown) is none of a, b."),
        (
            r"""a.txt, line 3: 'tokens' is ['a', "it's \"b\""]; x.""",
            "a.txt, line 3: 'tokens' is [(not shown), (not shown)]; x.",
        ),
        (
            "a.json, row 3: 'text' is ['a', 'cut off, it must be text",
            "a.json, row 3: 'text' is [(not shown), (not shown)",
        ),
        ("it's 'x', and SQuAD's rule", "it's (not shown), and SQuAD's rule"),
    ],
)
def test_messages_without_texts_keep_location_column_and_rule(message, shown):
    facts = without_texts({"train": SplitFacts(skipped=[message], warnings=["row 1 has 'x' and row 2 has \"y\"."])})
    assert facts["train"].skipped == [shown]
    assert facts["train"].warnings == ["row 1 has (not shown) and row 2 has (not shown)."]
