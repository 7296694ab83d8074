"""Texts with marked entities: both kinds of files, errors of rows, splits, and the real data."""

import json
from pathlib import Path

import pytest

from framework.errors import ConfigError, DataError
from framework.tasks.relation_extraction.data import RelationData
from framework.tasks.relation_extraction.marked_text import read_marked_text
from tests.support.real_data import needs_real_data, real_data

SEMEVAL = (
    '1\t"The <e1>cat</e1> sat in the <e2>box</e2>."\r\nIn(e1,e2)\r\nComment: why\r\n\r\n'
    '2\t"A <e1>tea</e1>\t is "<e2> é </e2>""\r\nOther\r\nComment:\r\n\r\n'
    '3\t"The <e2>box</e2> held a <e1>cat</e1>."\r\nIn(e2,e1)\r\n'
)


def write(path: Path, content: str) -> str:
    path.write_bytes(content.encode())
    return str(path)


def rows(*pairs: tuple[str, str]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)


def test_semeval(tmp_path):
    loaded = RelationData(write(tmp_path / "r.txt", SEMEVAL)).load()
    first, second, third = loaded.splits["train"]
    assert loaded.labels == ("In(e1,e2)", "In(e2,e1)", "Other")
    assert [each.label for each in (first, second, third)] == ["In(e1,e2)", "Other", "In(e2,e1)"]
    assert first.text.text == "The cat sat in the box."
    assert first.text.spans == ((4, 7), (19, 22))
    assert (second.text.text, second.text.entities) == ('A tea\t is " é "', ("tea", "é"))
    assert third.text.entities == ("cat", "box")
    assert first.location == f"{tmp_path}/r.txt, row 1 (line 3)"


def test_tables(tmp_path):
    content = "text,relation\n<e1>a</e1><e2>b</e2>,made of\n<e1>a</e1> <e2>b</e2>,7\n"
    loaded = RelationData(write(tmp_path / "r.csv", content), label_column="relation", labels=["made of", "7"]).load()
    assert loaded.labels == ("made of", "7")
    assert [each.text.text for each in loaded.splits["train"]] == ["ab", "a b"]
    assert loaded.splits["train"][1].text.spans == ((0, 1), (2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <e2>b</e2>", "<e1> occurs 0 times"),
        ("<e1>a <e2>b</e2>", "</e1> occurs 0 times"),
        ("<e1>a</e1> <e2>b</e2> <e2>c</e2>", "<e2> occurs 2 times"),
        ("<e1>a <e2>b</e1> c</e2>", "the order of the marks is <e1> <e2> </e1> </e2>. Each entity must end"),
        ("<e1>a <e2>b</e2></e1>", "the order of the marks is <e1> <e2> </e2> </e1>. Each entity must end"),
        ("</e1>a<e1> <e2>b</e2>", "the order of the marks is </e1> <e1> <e2> </e2>. Each entity must end"),
        ("<e1>a</e1> <e2> \t</e2>", "<e2> is empty"),
        ("<e2></e2><e1>a</e1>", "<e2> is empty"),
    ],
)
def test_invalid_marks(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_marked_text("a place", text)
    assert str(caught.value).startswith(f"a place: {message}")
    good = [("<e1>a</e1> <e2>b</e2>", "x"), ("<e1>a</e1> <e2>c</e2>", "y")]
    path = write(tmp_path / "r.jsonl", rows(*good, (text, "x")))
    with pytest.raises(DataError) as caught:
        RelationData(path).load()
    assert str(caught.value).startswith(f"{path}, row 3 (line 3): {message}")
    loaded = RelationData(path, on_bad_row="skip").load()
    assert (loaded.facts["train"].rows, loaded.facts["train"].num_skipped, loaded.facts["train"].read) == (2, 1, 3)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ('four "no number"\nOther\n', "line 12: the line is 'four \"no number\"'. A row must begin with a number"),
        ('4\t"<e1>a</e1> <e2>b</e2>"\n', "line 12: the sentence has no label"),
        ('4\t"<e1>a</e1> <e2>b</e2>"\nComment:\n', "line 12: the sentence has no label"),
        (
            '4\t"a"\nOther\n5\t"b"\nOther\n',
            "line 14: the line is '5\\t\"b\"'. A row must end with a comment or a blank line",
        ),
    ],
)
def test_blocks_that_are_no_rows(tmp_path, block, message):
    path = write(tmp_path / "r.txt", SEMEVAL + "\n" + block)
    with pytest.raises(DataError) as caught:
        RelationData(path).load()
    assert str(caught.value).startswith(f"{path}, {message}")
    facts = RelationData(path, on_bad_row="skip").load().facts["train"]
    assert (facts.read, facts.num_skipped) == (4, 1)


def test_invalid_labels(tmp_path):
    train = write(tmp_path / "train.txt", SEMEVAL)
    other = write(tmp_path / "other.jsonl", rows(("<e1>a</e1> <e2>b</e2>", "Other"), ("<e1>a</e1> <e2>b</e2>", "Out")))
    actual = RelationData(train, test=other).load()
    assert (actual.labels, len(actual.splits["test"])) == (("In(e1,e2)", "In(e2,e1)", "Other", "Out"), 2)
    known = list(actual.labels[:3])
    with pytest.raises(
        DataError, match=r"other.jsonl, row 2 \(line 2\): the label 'Out' is unknown\. .* one of In\(e1,e2\), In"
    ):
        RelationData(train, test=other, labels=known).load()
    assert len(RelationData(train, test=other, labels=known, on_bad_row="skip").load().splits["test"]) == 1
    with pytest.raises(
        DataError, match=r"train.txt, row 2 \(line 7\): the label 'Other' is unknown\. .* one of In\(e1,e2\), In"
    ):
        RelationData(train, test=other).load(["In(e1,e2)", "In(e2,e1)"])
    empty = write(tmp_path / "empty.jsonl", rows(("<e1>a</e1> <e2>b</e2>", " ")))
    with pytest.raises(DataError, match=r"row 1 \(line 1\): the label is ' '\. Each row needs a text"):
        RelationData(empty).load()
    one = write(tmp_path / "one.jsonl", rows(("<e1>a</e1> <e2>b</e2>", "x")))
    with pytest.raises(DataError, match="all 1 training rows have the label 'x'"):
        RelationData(one).load()
    with pytest.raises(ConfigError, match="labels is \\['x', 'x'\\]"):
        RelationData(train, labels=["x", "x"])


def test_a_text_falls_into_one_split_and_is_a_repeat_only_with_the_same_entities(tmp_path):
    texts = [(f"<e1>a</e1> {number} <e2>b</e2> c", "x") for number in range(40)]
    others = [(f"a {number} <e1>b</e1> <e2>c</e2>", "y") for number in range(40)]
    path = write(tmp_path / "r.jsonl", rows(*texts, *others, *texts[:3]))
    loaded = RelationData(path, validation_fraction=0.3, deduplicate=True).load()
    assert loaded.facts["train"].left_out == {"repeated": 3}
    texts_of = {split: [each.text.text for each in examples] for split, examples in loaded.splits.items()}
    assert sum(map(len, texts_of.values())) == 80
    assert texts_of["validation"] and set(texts_of["validation"]).isdisjoint(texts_of["train"])


@needs_real_data
def test_every_row_of_semeval_is_valid():
    folder = real_data("relation")
    names = [str(folder / f"semeval2010_task8_{split}.txt") for split in ("train", "test")]
    loaded = RelationData(names[0], test=names[1]).load()
    assert sum(facts.read for facts in loaded.facts.values()) == 10_717
    assert {split: len(examples) for split, examples in loaded.splits.items()} == {"train": 8_000, "test": 2_717}
    assert len(loaded.labels) == 19
    assert sum(each.label == "Other" for each in loaded.splits["test"]) == 454
