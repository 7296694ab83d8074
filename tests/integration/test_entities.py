"""Tests of entity recognition by the commands: training, evaluation, predictions in the order of rows, bad input."""

import json

import pytest

from tests.support.commands.in_process import TINY, assert_clear_error

ENTITIES = [
    "experiment=finetune_ner",
    "data.train=train.conll",
    "data.validation_fraction=0.2",
    "model=demo",
    "init_from=null",
    "tokenizer=folder",
    "tokenizer.path=tokenizer",
    "logger=none",
    "precision=fp32",
    "run.id=mine",
    "trainer.max_steps=2",
    "trainer.global_batch_size=8",
    *TINY,
]


@pytest.fixture
def sentences(here):
    """Writes sentences about films of a year, in which the years of good films are entities."""
    lines = [
        f"a O\n{word} O\nfilm O\nof {tag}\n{year} {tag.replace('B', 'I')}\n"
        for year in range(1990, 2000)
        for word, tag in (("good", "B-time"), ("bad", "O"))
    ]
    (here / "train.conll").write_text("\n".join(lines))


def test_from_a_file_to_entities(here, sentences, call):
    outcome = call("train", *ENTITIES)
    assert outcome.code == 0, outcome.err
    assert "val entity F1" in outcome.out
    last = json.loads((here / "runs/mine/metrics.jsonl").read_text().splitlines()[-1])
    outcome = call("evaluate", "run=mine", "output=scores.json", "precision=fp32")
    assert outcome.code == 0, outcome.err
    scores = json.loads((here / "scores.json").read_text())
    assert scores["metrics"] == pytest.approx(
        {key.removeprefix("val/"): value for key, value in last.items() if key.startswith("val/")}
    )
    assert [row["label"] for row in scores["classes"]] == ["time"]
    texts = ["a good film of 1990", "", "a film " * 200]
    (here / "rows.jsonl").write_text("".join(json.dumps({"id": 7 - at, "t": t}) + "\n" for at, t in enumerate(texts)))
    arguments = ["input=rows.jsonl", "output=out.jsonl", "columns={text: t}", "keep_columns=[id]"]
    outcome = call("predict", "run=mine", *arguments)
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["t"]) for row in rows] == [(7, texts[0]), (6, ""), (5, texts[2])]
    assert rows[1]["entities"] == []
    for row in rows:
        for entity in row["entities"]:
            assert row["t"][entity["start"] : entity["end"]] == entity["text"]
            assert entity["label"] == "time" and 0 < entity["probability"] <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=nowhere.conll", "nowhere.conll cannot be read"),
        ("data.scheme=iob1", "train.conll, sentence 1 (line 1), line 4: 'B-time' follows 'O'. The scheme iob1"),
        ("data.conll.tag_column=0", "the line has 2 columns. Column 0 must hold the word and column 0 its tag"),
        ("data.conll.tag_colum=0", "unknown config key `data.conll.tag_colum`. Did you mean `tag_column`?"),
        ("data.on_bad_row=ignore", "`data.on_bad_row` is 'ignore'. It must be one of error, skip"),
        ("task.units=letters", "`task.units` is 'letters'. It must be one of words, white_space, characters"),
        ("task.stride=200", "stride is 200"),
    ],
)
def test_bad_input_is_told_once(here, sentences, call, override, message):
    assert_clear_error(call("train", *ENTITIES, f"+{override}" if "colum=" in override else override), message)
    assert not (here / "runs").exists()
