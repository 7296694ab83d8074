"""Labelled tables: splits, repeats, label sets, and an error with file and row for each bad row."""

import json

import pytest

from framework.data.examples import table
from framework.data.examples.answers import number, one_label, several_labels
from framework.data.examples.table import TableData
from framework.data.facts import skipped_rows
from framework.errors import ConfigError, DataError


def write(path, rows, suffix=".csv"):
    """Writes rows of (text, label) with a header."""
    path = path.with_suffix(suffix)
    if suffix == ".jsonl":
        text = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    else:
        mark = "," if suffix == ".csv" else "\t"
        text = f"text{mark}label\n" + "".join(f"{text}{mark}{label}\n" for text, label in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def many(number=400):
    return [(f"review number {index}", index % 2) for index in range(number)]


def texts(rows):
    return [row.text for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    rows = [("good", "pos"), ("bad \u0085 film", "neg"), ("\u597d\u770b\u7684\u7535\u5f71", "pos")]
    table = TableData(write(tmp_path / "data", rows, suffix)).load()
    assert table.labels == ("neg", "pos")
    assert list(table.splits) == ["train"]
    assert [(row.text, row.pair, row.label) for row in table.splits["train"]] == [(t, None, label) for t, label in rows]


def test_pairs_are_read(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label\nq,answer,1\nq,other,0\n")
    rows = TableData(str(path), text_column="a", pair_column="b").load().splits["train"]
    assert [(row.text, row.pair) for row in rows] == [("q", "answer"), ("q", "other")]


def test_labels_are_sorted_by_value_if_they_are_whole_numbers(tmp_path):
    numbers = [(f"t{label}", label) for label in (10, 9, -1, 2)]
    assert TableData(write(tmp_path / "numbers", numbers)).load().labels == ("-1", "2", "9", "10")
    words = [(f"t{label}", label) for label in ("b", "10", "9", "a")]
    assert TableData(write(tmp_path / "words", words)).load().labels == ("10", "9", "a", "b")


def test_given_labels_keep_their_order(tmp_path):
    data = TableData(write(tmp_path / "data", many()), labels=[1, 0, 2])
    assert data.load().labels == ("1", "0", "2")
    assert data.load(["0", "1"]).labels == ("0", "1")


def test_splits_contain_every_row_once_in_any_order_of_rows(tmp_path):
    rows = many()
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.1}
    splits = TableData(write(tmp_path / "data", rows), **fractions).load().splits
    assert sorted(text for split in splits.values() for text in texts(split)) == sorted(text for text, _ in rows)
    # Binomial bounds: 4 standard deviations of 400 draws.
    assert abs(len(splits["validation"]) - 80) < 32
    assert abs(len(splits["test"]) - 40) < 24
    reversed_splits = TableData(write(tmp_path / "reversed", rows[::-1]), **fractions).load().splits
    assert {split: set(texts(each)) for split, each in splits.items()} == {
        split: set(texts(each)) for split, each in reversed_splits.items()
    }
    more = TableData(write(tmp_path / "more", [*rows, ("a new one", 1)]), **fractions).load().splits
    assert set(texts(splits["test"])) <= set(texts(more["test"]))
    other = TableData(write(tmp_path / "data", rows), split_seed=1, **fractions).load().splits
    assert set(texts(splits["test"])) != set(texts(other["test"]))


def test_equal_texts_never_fall_into_two_splits(tmp_path):
    rows = [*many(), *((f" review  number {index}", index % 2) for index in range(400))]
    splits = TableData(write(tmp_path / "data", rows), validation_fraction=0.5).load().splits
    identities = [{row.identity for row in split} for split in splits.values()]
    assert not identities[0] & identities[1]
    assert sum(map(len, splits.values())) == 800


def test_repeats_are_omitted_and_counted(tmp_path):
    rows = [
        ("one", 0),
        ("two", 1),
        ("one  ", 0),
        ("e\u0301t\u00e9", 1),
        ("\u00e9t\u00e9", 1),
        ("three", 0),
        ("three", 1),
    ]
    path = write(tmp_path / "data", [*rows, ("held out", 1), ("held out", 0)])
    test = write(tmp_path / "test", [("held out", 1), ("x", 1), ("x", 0)])
    table = TableData(path, test=test, deduplicate=True).load()
    assert texts(table.splits["train"]) == ["one", "two", "e\u0301t\u00e9"]
    assert texts(table.splits["test"]) == ["held out", "x", "x"]
    assert table.facts["train"].left_out == {"also evaluated on": 2, "contradicting": 2, "repeated": 2}
    assert [(facts.rows, facts.read) for facts in table.facts.values()] == [(3, 9), (3, 3)]
    (warning,) = table.facts["train"].warnings
    assert "data.csv, row 6 (line 7) has '0' and" in warning and "data.csv, row 7 (line 8) has '1'" in warning


def test_where_selects_rows_by_their_values(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [("a", 0, "x", 1), ("b", 1, "x", 1), ("c", 1, "y", 1), ("d", 0, "x", 2)]
    path.write_text(
        "".join(json.dumps(dict(zip(("text", "label", "s", "n"), row, strict=True))) + "\n" for row in rows)
    )
    assert texts(TableData(str(path), where={"s": "x", "n": 1}).load().splits["train"]) == ["a", "b"]


def test_fewer_training_rows_are_a_subset_of_more(tmp_path):
    path = write(tmp_path / "data", many())
    some, more, whole = (
        texts(TableData(path, validation_fraction=0.2, max_train_rows=size).load().splits["train"])
        for size in (20, 100, None)
    )
    assert (len(some), len(more)) == (20, 100)
    assert set(some) < set(more) < set(whole)
    assert more == [text for text in whole if text in set(more)]
    validation = [
        texts(TableData(path, validation_fraction=0.2, max_train_rows=n).load().splits["validation"])
        for n in (20, None)
    ]
    assert validation[0] == validation[1]


def test_separate_files_replace_fractions(tmp_path):
    own = write(tmp_path / "own", [("v", 1)])
    splits = TableData(write(tmp_path / "data", many()), validation=own, validation_fraction=0.5).load().splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 400, "validation": 1}


GOOD = "text,label\na,0\nb,1\n"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, {}, "data.csv cannot be read"),
        ("", {}, "data.csv is empty"),
        ("text,label\n", {}, "data.csv has no rows"),
        ("words,label\na,0\n", {}, "data.csv, line 1: no column 'text'"),
        (GOOD, {"label_column": "class"}, "data.csv, line 1: no column 'class'"),
        (GOOD, {"where": {"source": "imdb"}}, "data.csv, line 1: no column 'source'"),
        (GOOD, {"where": {"label": 7}}, "data.csv has no row where {'label': '7'}"),
        ("text,label\na,0\n  ,1\n", {}, r"data.csv, row 2 \(line 3\): 'text' is empty"),
        ("text,label\na,0\nb,\n", {}, r"data.csv, row 2 \(line 3\): 'label' is empty"),
        (
            "text,label\na,0\nb,2\nc,1\n",
            {"labels": [0, 1]},
            r"data.csv, row 2 \(line 3\): the label '2' is none of 0, 1",
        ),
        (
            "text,label\na,0\nb,0\n",
            {},
            r"data.csv, row 1 \(line 2\): all training rows \(2 rows\) have the label '0'",
        ),
        ("text,label\na,0\nb,0\n", {"labels": [0, 1]}, r"all training rows \(2 rows\) have the label '0'"),
        ("text,label\na,0\nb,1,9\n", {}, r"data.csv, row 2 \(line 3\): 3 fields, the header has 2"),
        (b"text,label\na,0\n\xff,1\n", {}, "data.csv, line 3: byte 0xff"),
        (GOOD, {"validation_fraction": 1e-9}, "the split validation has no rows"),
    ],
)
def test_a_bad_table_is_one_error_with_its_location(tmp_path, content, arguments, message):
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        TableData(str(path), **arguments).load()


def test_the_labels_of_all_files_count(tmp_path):
    path, own = write(tmp_path / "data", many()), write(tmp_path / "own", [("x", 1), ("y", 5)])
    table = TableData(path, validation=own).load()
    assert (table.labels, texts(table.splits["validation"])) == (("0", "1", "5"), ["x", "y"])
    with pytest.raises(DataError, match=r"own.csv, row 2 \(line 3\): the label '5' is none of 0, 1"):
        TableData(path, validation=own, labels=[0, 1]).load()
    # Out-of-scope rows are no class unless the model is trained on them.
    assert TableData(path, validation=own).load(answers=one_label(frozenset({"5"}))).labels == ("0", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"test_fraction": -0.1}, "test_fraction is -0.1"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing for training"),
        ({"max_train_rows": 1}, "max_train_rows is 1"),
        ({"labels": ["a"]}, "at least 2 different labels"),
        ({"labels": [1, "1"]}, "at least 2 different labels"),
    ],
)
def test_impossible_numbers_are_rejected_before_any_file_is_read(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TableData("not there.csv", **arguments)


def test_bad_rows_are_skipped_and_kept_with_their_locations_if_requested(tmp_path):
    rows = ["text,label", "a,0", " ,1", "b,", "c,1,2", "d,1", "e,0"]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows) + "\n")
    own = write(tmp_path / "own", [("x", 1), ("y", 5), ("", 1)])
    table = TableData(str(path), validation=own, on_bad_row="skip", labels=[0, 1]).load()
    assert {split: texts(rows) for split, rows in table.splits.items()} == {
        "train": ["a", "d", "e"],
        "validation": ["x"],
    }
    assert [(facts.read, facts.rows, facts.num_skipped) for facts in table.facts.values()] == [(6, 3, 3), (3, 1, 2)]
    assert list(skipped_rows(table.facts)) == [
        {"split": split, "file": file, "place": f"row {row} (line {line})", "row": row, "line": line, "reason": reason}
        for split, file, row, line, reason in (
            ("train", str(path), 2, 3, "'text' is empty. Each row needs one. Complete or remove the row."),
            ("train", str(path), 3, 4, "'label' is empty. Each row needs one. Complete or remove the row."),
            (
                "train",
                str(path),
                4,
                5,
                "3 fields, the header has 2. Each row must have as many fields as there are columns. Quote fields that "
                "contain the delimiter, a quote or a line end.",
            ),
            ("validation", own, 3, 4, "'text' is empty. Each row needs one. Complete or remove the row."),
            (
                "validation",
                own,
                2,
                3,
                "the label '5' is none of 0, 1. Labels must be in the label set. Correct the row, or list all labels "
                "in data.labels.",
            ),
        )
    ]
    with pytest.raises(DataError, match=r"own\.csv has no usable row\. The first error: .*row 1 \(line 2\): 'text'"):
        TableData(str(path), validation=write(tmp_path / "own", [("", 1)]), on_bad_row="skip").load()


def test_numbers_and_several_labels(tmp_path):
    path = write(tmp_path / "data", [("a", "2.5"), ("b", "-1e2"), ("c", "0")])
    table = TableData(path).load(answers=number())
    assert (table.labels, [row.label for row in table.splits["train"]]) == ((), [2.5, -100.0, 0.0])
    path = write(tmp_path / "data", [("a", "10; 9"), ("b", ""), ("c", "9"), ("d", '["10"]')], ".jsonl")
    table = TableData(path).load(answers=several_labels(";"))
    assert table.labels == ("9", "10")
    assert [row.label for row in table.splits["train"]] == [("10", "9"), (), ("9",), ("10",)]
    with pytest.raises(DataError, match=r"row 1 \(line 1\): the label '10' is none of 9, 8"):
        TableData(path, labels=[9, 8]).load(answers=several_labels(";"))
    path = write(tmp_path / "nan", [("a", '["10", NaN]'), ("b", "9")], ".jsonl")
    with pytest.raises(DataError, match=r"must be a JSON list of labels, each a text or a finite number"):
        TableData(path).load(answers=several_labels(";"))


def test_a_label_outside_the_set_that_rows_may_have(tmp_path):
    path, own = write(tmp_path / "data", many()), write(tmp_path / "own", [("x", 1), ("y", "oos")])
    table = TableData(path, validation=own).load(answers=one_label(frozenset({"oos"})))
    assert table.labels == ("0", "1")
    assert [row.label for row in table.splits["validation"]] == ["1", "oos"]


@pytest.mark.parametrize("cell", ["1_5", "1_000.5", "\u0661_5"])
def test_an_underscore_makes_no_number(tmp_path, cell):
    path = write(tmp_path / "data", [("a", "2.5"), ("b", cell), ("c", "0")])
    with pytest.raises(DataError, match=rf"row 2 \(line 3\): 'label' is '{cell}'\. It must be a number"):
        TableData(path).load(answers=number())


def test_a_url_is_shown_completely(tmp_path):
    with pytest.raises(ConfigError, match=r"`data.test` is https://a.b/c.csv, a URL"):
        TableData(write(tmp_path / "data", many()), test="https://a.b/c.csv").load()


def test_a_file_of_two_splits_is_read_once(tmp_path, monkeypatch):
    file, opened, read = tmp_path / "a.csv", [], table.read_rows
    file.write_text("text,label\ngood,1\n,0\nbad,0\n")
    monkeypatch.setattr(table, "read_rows", lambda path, *rest: opened.append(path) or read(path, *rest))
    table_data = TableData(str(file), test=str(file), on_bad_row="skip").load()
    assert opened == [file]
    assert table_data.splits["train"] == table_data.splits["test"] and [
        row.text for row in table_data.splits["test"]
    ] == [
        "good",
        "bad",
    ]
    assert [facts.num_skipped for facts in table_data.facts.values()] == [1, 1]
