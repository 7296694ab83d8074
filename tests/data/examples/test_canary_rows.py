"""Canaries of labelled tables: training rows with random words and labels, and what cannot have them."""

from collections import Counter
from pathlib import Path

import pytest

from framework.config.identity import identity
from framework.data.canaries import canary_words
from framework.data.examples.pictures import PictureTable
from framework.data.examples.table import TableData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from tests.support.commands.in_process import write_rows

WORDS = [f"{first}{vowel}{last}" for first in "bcdfgh" for vowel in "aeiou" for last in "lmn"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words")
    training = WordPieceTraining(400)
    training.train(WordCounts(training.count([" ".join(WORDS)] * 3)), folder)
    return Tokenizer.from_folder(folder)


@pytest.fixture
def rows(tmp_path) -> str:
    write_rows(tmp_path / "rows.csv", [f"{word} text" for word in WORDS], ["no", "yes"] * (len(WORDS) // 2))
    return str(tmp_path / "rows.csv")


def test_rows_of_canaries_are_training_rows_with_random_words_and_labels(rows, tokenizer):
    data = TableData(rows, validation_fraction=0.2, canaries=10, canary_repeats=[1, 3])
    drawn = data.canary_rows(tokenizer, ("no", "yes"))
    copies = Counter((row.text, row.label) for row in drawn)
    assert sorted(copies.values()) == [1] * 5 + [3] * 5
    assert {label for _, label in copies} == {"no", "yes"}
    assert {word for text, _ in copies for word in text.split()} <= set(canary_words(tokenizer))
    assert drawn == data.canary_rows(tokenizer, ("no", "yes"))
    other = TableData(rows, canaries=10, canary_repeats=[1, 3], split_seed=1).canary_rows(tokenizer, ("no", "yes"))
    assert not {row.text for row in other} & {row.text for row in drawn}

    task = SequenceClassificationTask(max_length=16)
    task.keeps_training_rows = True
    sources = task.build_sources(data, tokenizer, seed=0)
    plain = SequenceClassificationTask(max_length=16).build_sources(
        TableData(rows, validation_fraction=0.2), tokenizer, seed=0
    )
    assert list(sources["train"].records)[-len(drawn) :] == drawn
    assert len(sources["train"]) == len(plain["train"]) + 20 == sources["train"].facts.rows
    assert sources["train"].facts.notes["rows of canaries"] == "20"
    assert sources["validation"].fingerprint == plain["validation"].fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canaries": -2}, "data.canaries is -2. It must be from 1"),
        ({"canaries": 2}, r"data.canary_repeats is \[1, 4, 16\] for 2 canaries"),
        ({"canaries": 20, "pair_column": "b"}, "data.canaries is 20, and data.pair_column is set"),
        ({"canaries": 20, "group_column": "g"}, "data.canaries is 20, and data.group_column is set"),
    ],
)
def test_what_cannot_have_canaries_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TableData("rows.csv", **options)


def test_problems_without_one_label_and_pictures_are_refused(rows, tokenizer):
    data = TableData(rows, canaries=20, validation_fraction=0.1)
    with pytest.raises(ConfigError, match=r"data.canaries is 20, and task.problem is multi_label"):
        SequenceClassificationTask(max_length=16, problem="multi_label").build_sources(data, tokenizer, seed=0)
    with pytest.raises(ConfigError, match="Canaries are texts without a picture"):
        PictureTable(str(Path(rows)), canaries=20)


def test_copies_of_a_canary_are_one_privacy_unit(rows, tokenizer):
    data = TableData(rows, canaries=10, canary_repeats=[1, 3]).with_units("label")
    facts = SequenceClassificationTask(max_length=16).build_sources(data, tokenizer, seed=0)["train"].facts
    assert len(facts.units) == facts.rows == len(WORDS) + 20
    assert Counter(Counter(list(facts.units.values())[len(WORDS) :]).values()) == {1: 5, 3: 5}


def test_a_config_without_canaries_is_that_of_earlier_versions():
    earlier = {"data": {"train": "rows.csv"}}
    now = {"data": {"train": "rows.csv", "canaries": 0, "canary_repeats": [1, 4, 16]}}
    assert identity(earlier) == identity(now)
    assert identity({"data": {"train": "rows.csv", "canaries": 20}}) != identity(now)
