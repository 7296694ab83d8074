"""Suites of behaviour tests: formats, templates, and lines that are rejected with their place."""

import gzip
import json

import pytest

from framework.audits.suite import read_suite
from framework.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write(*tests: object):
        path = tmp_path / "suite.jsonl"
        path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in tests))
        return path

    return write


def label_test(**changes) -> dict:
    return {"name": "one", "kind": "label", "label": "1", "cases": ["good"]} | changes


def test_each_kind_is_read(write):
    tests = read_suite(
        write(
            label_test(capability="words", cases=["good", ["fine", "nice"]], labels=["1", [0, 1]]),
            "",
            {"name": "two", "kind": "same", "tolerance": 0.1, "cases": [["a", "b", "c"]]},
            {"name": "three", "kind": "not_lower", "label": 1, "against": 0, "ignored": 2, "cases": [["a", "b"]]},
        ),
        ["text"],
    )
    assert [(test.name, test.capability, test.kind) for test in tests] == [
        ("one", "words", "label"),
        ("two", "", "same"),
        ("three", "", "not_lower"),
    ]
    assert [[text["text"] for text in case.texts] for case in tests[0].cases] == [["good"], ["fine", "nice"]]
    assert [case.expectation.accepted for case in tests[0].cases] == [("1",), ("0", "1")]
    assert tests[1].cases[0].expectation.tolerance == 0.1
    last = tests[2].cases[0].expectation
    assert (last.kind, last.label, last.against, last.ignored) == ("not_lower", "1", "0", "2")


def test_templates_become_all_combinations_of_their_words(write):
    words = {"noun": ["film", "cast"], "adjective": ["good", "fine", "nice"], "unused": []}
    (test,) = read_suite(
        write(
            {
                "name": "pairs",
                "kind": "not_lower",
                "templates": [["The {noun} is {adjective}.", "The {noun} is very {adjective}."], ["{noun}", "{noun}!"]],
                "words": words,
            }
        ),
        ["text"],
    )
    texts = [tuple(text["text"] for text in case.texts) for case in test.cases]
    assert len(texts) == 2 * 3 + 2
    assert texts[0] == ("The film is good.", "The film is very good.")
    assert texts[-1] == ("cast", "cast!")
    templates = ["A {noun}.", "No {noun}."]
    (test,) = read_suite(
        write({"name": "one", "kind": "label", "templates": templates, "words": words, "labels": [1, 0]}), ["text"]
    )
    assert [(case.texts[0]["text"], case.expectation.accepted) for case in test.cases] == [
        ("A film.", ("1",)),
        ("A cast.", ("1",)),
        ("No film.", ("0",)),
        ("No cast.", ("0",)),
    ]


def test_tasks_with_several_fields_have_objects_as_texts(write):
    (test,) = read_suite(write(label_test(cases=[{"pair": "b", "text": "a"}])), ["text", "pair"])
    assert test.cases[0].texts == ({"text": "a", "pair": "b"},)
    with pytest.raises(DataError, match=r"case 1 is 'good'. It must be an object with the texts text, pair."):
        read_suite(write(label_test()), ["text", "pair"])


def test_tests_of_checklist_are_read_as_they_are(tmp_path):
    path = tmp_path / "suite.jsonl.gz"
    lines = [
        {"name": "words", "type": "MFT", "capability": "Vocabulary", "labels": 2, "data": ["good", "fine"]},
        {"name": "Q & A: no", "type": "MFT", "labels": [1, 0], "data": ["a", "b"]},
        {"name": "simple negations: not negative", "type": "MFT", "labels": None, "data": ["not bad"]},
        {"name": "typos", "type": "INV", "labels": None, "data": [["good film", "godo film"]]},
        {"name": "add positive phrases", "type": "DIR", "labels": None, "data": [["a", "a. I love you"]]},
        {"name": "unknown", "type": "DIR", "labels": None, "data": [["a", "b"]]},
        {"name": "objects", "type": "MFT", "labels": 0, "data": ["fine", "<obj>"]},
        {"name": "numbers", "type": "INV", "labels": None, "data": [["a", 3]]},
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    tests = {test.name: test for test in read_suite(path, ["text"])}
    assert [case.expectation.accepted for case in tests["words"].cases] == [("2",), ("2",)]
    assert [case.expectation.accepted for case in tests["Q & A: no"].cases] == [("1", "2"), ("0",)]
    assert tests["simple negations: not negative"].cases[0].expectation.accepted == ("1", "2")
    assert (tests["typos"].kind, tests["typos"].cases[0].expectation.tolerance) == ("same", 0.1)
    phrases = tests["add positive phrases"].cases[0].expectation
    assert (phrases.kind, phrases.label, phrases.against) == ("not_lower", "2", "0")
    reasons = {name: test.reason for name, test in tests.items() if not test.cases}
    assert set(reasons) == {"unknown", "objects", "numbers"}
    assert reasons["objects"] == "case 2 is '<obj>', which is no text"
    assert "does not contain its expectation" in reasons["unknown"]
    assert "case 1 is '3'" in reasons["numbers"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[]", "line 1 is no JSON object"),
        (label_test(kinds="label"), "has the unknown key 'kinds'. Did you mean `kind`?"),
        (label_test(name=" "), "has the name ' '. It must be text."),
        (label_test(kind="equal"), "test 'one' has the kind 'equal'. It must be one of label, same, not_lower"),
        (label_test(tolerance=2), "has the tolerance 2. It must be at least 0 and below 1."),
        (label_test(cases=[]), r"has the cases \[\]. They must be a list that is not empty."),
        (label_test(cases=["a", 3]), "case 2 is '3'. It must be a text."),
        (label_test(cases=["a", " "]), "case 2 has the text ' '. It must be a text that is not empty."),
        (label_test(cases=["\ud800"]), "case 1"),
        (label_test(labels=["1", "0"]), "has 1 cases and 2 labels."),
        (label_test(templates=["x"]), "must have either cases or templates."),
        ({"name": "one", "kind": "label", "cases": ["a"]}, "has no label. The kind label needs the expected one."),
        ({"name": "one", "kind": "same", "cases": [["a"]]}, "case 1 has 1 text. The kind same needs 2."),
        (
            {"name": "one", "kind": "label", "label": 1, "templates": ["{x}"], "words": {"y": ["a"]}},
            "has a template with {x}, but words.x is None.",
        ),
    ],
)
def test_bad_lines_are_rejected_with_their_place(write, line, message):
    with pytest.raises(DataError, match=message) as raised:
        read_suite(write(line), ["text"])
    assert "suite.jsonl, line 1" in str(raised.value)


def test_names_must_differ(write):
    with pytest.raises(DataError, match="has several tests with the name 'one'"):
        read_suite(write(label_test(), label_test()), ["text"])
