# ruff: noqa: E501  the table of cases has one case a line
"""Questions: both formats, splits by context, and an error with file and question for every bad one."""

import gzip
import json
import os
from pathlib import Path

import pytest

from framework.errors import ConfigError, DataError
from framework.tasks.question_answering.data import Answer, QuestionData
from tests.support.real_data import needs_real_data, real_data

CONTEXT = "Zoë lives in 北京, not in Bern."
GOOD = {"id": "a", "question": "Where?", "answers": [{"text": "北京", "answer_start": 13}]}


def squad(*questions: dict, context: object = CONTEXT, **keys: object) -> dict:
    return {
        "version": "x",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions), **keys}]}],
    }


def write(path: Path, content: object) -> str:
    """Writes a dict as JSON and a list as JSONL; compressed if the suffix says so."""
    text = json.dumps(content) if isinstance(content, dict) else "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def load(path: Path, content: object, **settings: object):
    return QuestionData(write(path, content), **settings).load()


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_squad_in_both_versions(tmp_path, suffix):
    second = {"text": "Bern", "answer_start": 24}
    questions = load(
        tmp_path / f"q{suffix}",
        squad(
            GOOD | {"type": "Other|||keys"},
            {"id": 7, "question": "Or?", "is_impossible": False, "answers": [GOOD["answers"][0], second]},
            {"id": "c", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [second]},
            index=3,
        ),
    ).splits["train"]
    assert [question.question for question in questions] == ["Where?", "Or?", "Why?"]
    assert [question.answers for question in questions] == [
        (Answer("北京", 13),),
        (Answer("北京", 13), Answer("Bern", 24)),
        (),
    ]
    assert {question.context for question in questions} == {CONTEXT}
    assert questions[1].location == f"{tmp_path}/q{suffix}, article 1, paragraph 1, question 7"


def test_rows_of_jsonl_with_other_names(tmp_path):
    rows = [
        {"q": "Where?", "passage": CONTEXT, "spans": [{"text": "Zoë", "answer_start": 0}], "is_impossible": False},
        {"q": "Why?", "passage": CONTEXT, "spans": []},
        {"q": "Both?", "passage": CONTEXT, "spans": {"text": ["Zoë", "Bern"], "answer_start": [0, 24]}},
    ]
    columns = {"question": "q", "context": "passage", "answers": "spans"}
    questions = load(tmp_path / "q.jsonl", rows, columns=columns).splits["train"]
    assert [[answer.text for answer in question.answers] for question in questions] == [["Zoë"], [], ["Zoë", "Bern"]]
    assert questions[1].location == f"{tmp_path}/q.jsonl, row 2 (line 2)"


def many(num_contexts: int = 300, on_each: int = 3) -> list[dict]:
    return [
        {
            "question": f"What {number}?",
            "context": f"Context {index}.",
            "answers": [{"text": "Context", "answer_start": 0}],
        }
        for index in range(num_contexts)
        for number in range(on_each)
    ]


def test_all_questions_of_a_context_fall_into_one_split(tmp_path):
    splits = load(tmp_path / "q.jsonl", many(), validation_fraction=0.2, test_fraction=0.1).splits
    contexts = {split: {question.context for question in questions} for split, questions in splits.items()}
    assert not contexts["train"] & contexts["validation"] and not contexts["test"] & contexts["validation"]
    assert {split: len(questions) for split, questions in splits.items()} == {
        split: 3 * len(each) for split, each in contexts.items()
    }
    assert sum(map(len, contexts.values())) == 300
    # Binomial bounds: 4 standard deviations of 300 draws.
    assert abs(len(contexts["validation"]) - 60) < 28


def test_only_repeats_of_a_question_on_its_context_are_omitted(tmp_path):
    rows = many(3)
    other_answer = rows[0] | {"answers": [{"text": "0", "answer_start": 8}]}
    spaced = rows[1] | {"question": " What  1?"}
    questions = load(tmp_path / "q.jsonl", [*rows, other_answer, spaced], deduplicate=True)
    assert len(questions.splits["train"]) == 9
    assert questions.facts["train"].left_out == {"repeated": 2}
    held_out = write(tmp_path / "v.jsonl", rows[4:6])
    assert len(load(tmp_path / "q.jsonl", rows, deduplicate=True, validation=held_out).splits["train"]) == 7


def changed(**changes: object) -> dict:
    return GOOD | {"id": "b"} | changes


def answered(*answers: object) -> dict:
    return changed(answers=list(answers))


BAD = [
    ("another text at the offset", answered({"text": "Bern", "answer_start": 13}), "the answer 'Bern' does not match '北京, ' at character 13 of the context"),
    ("an offset of bytes", answered({"text": "北京", "answer_start": 14}), "does not match '京,' at character 14"),
    ("beyond the end", answered({"text": "Bern.!", "answer_start": 24}), "from character 24 exceeds the context of 29 characters"),
    ("before the beginning", answered({"text": "n.", "answer_start": -2}), "from character -2 exceeds the context"),
    ("an empty second answer", answered(GOOD["answers"][0], {"text": "", "answer_start": 0}), "'text' is empty"),
    ("an empty answer", answered({"text": " ", "answer_start": 3}), "'text' is empty"),
    ("no offset", answered({"text": "Bern"}), "It must have a whole number as `answer_start`"),
    ("an offset of text", answered({"text": "Bern", "answer_start": "24"}), "a whole number as `answer_start`"),
    ("an answer that is no object", answered("Bern"), "an answer is 'Bern'"),
    ("no list of answers", changed(answers="Bern"), "'answers' is 'Bern'. It must be a list"),
    ("lists of unequal length", changed(answers={"text": ["Bern"], "answer_start": []}), "It must be a list"),
    ("an empty question", changed(question=" \n"), "'question' is empty"),
    ("a question that is no text", changed(question=5), "'question' is 5. It must be text"),
    ("half of a surrogate pair", changed(question="\ud83d?"), "'question' holds \\ud83d, half of a surrogate pair"),
    ("impossible with an answer", changed(is_impossible=True), "'is_impossible' is True, but the question has 1 answers"),
    ("possible without one", changed(is_impossible=False, answers=[]), "'is_impossible' is False, but the question has 0 answers"),
    ("an id that came before", changed(id="a"), "the id 'a' occurs twice"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_bad_question_is_an_error_or_skipped_and_counted(tmp_path, suffix, bad, message):
    path = tmp_path / f"q{suffix}"
    rows = [GOOD | {"context": CONTEXT}, bad | {"context": CONTEXT}]
    content = squad(GOOD, bad) if suffix == ".json" else rows
    with pytest.raises(DataError) as error:
        load(path, content)
    location = f"article 1, paragraph 1, question {bad['id']!r}" if suffix == ".json" else "row 2 (line 2)"
    assert str(error.value).startswith(f"{path}, {location}: ") and message in str(error.value)
    questions = load(path, content, on_bad_row="skip")
    assert [question.question for question in questions.splits["train"]] == ["Where?"]
    facts = questions.facts["train"]
    assert (facts.read, facts.rows, facts.num_skipped) == (2, 1, 1)
    assert message in facts.skipped[0]


def test_further_answers_are_compared_as_texts_and_need_no_offset(tmp_path):
    """In the dev set of CMRC 2018 a second or third reference has the offset -1."""
    first = GOOD["answers"][0]
    rows = [answered(first, {"text": "Zoe", "answer_start": -1}, {"text": "Basel"}) | {"context": CONTEXT}]
    (question,) = load(tmp_path / "q.jsonl", rows).splits["train"]
    assert [(answer.text, answer.start) for answer in question.answers] == [
        (first["text"], first["answer_start"]),
        ("Zoe", None),
        ("Basel", None),
    ]


def test_questions_used_only_for_evaluation_need_texts(tmp_path):
    unplaced = answered({"text": "Zürich", "answer_start": -1}, {"text": "x", "answer_start": 3})
    held_out = write(tmp_path / "v.jsonl", [unplaced | {"context": CONTEXT}])
    actual = load(tmp_path / "q.jsonl", [GOOD | {"context": CONTEXT}], validation=held_out)
    (question,) = actual.splits["validation"]
    assert [answer.start for answer in question.answers] == [None, None]
    assert actual.facts["validation"].notes == {"answers without an offset, for scores only": "2"}
    with pytest.raises(DataError, match="the answer 'Zürich' from character -1 exceeds the context"):
        load(tmp_path / "v.jsonl", [unplaced | {"context": CONTEXT}])


def test_a_wrong_offset_is_repaired_if_the_text_occurs_once(tmp_path):
    rows = [GOOD | {"context": CONTEXT}, answered({"text": "北京", "answer_start": 14}) | {"context": CONTEXT}]
    with pytest.raises(DataError, match=r"occurs once, so data\.invalid_answers=repair corrects it"):
        load(tmp_path / "q.jsonl", rows)
    actual = load(tmp_path / "q.jsonl", rows, invalid_answers="repair")
    assert actual.splits["train"][1].answers[0].start == CONTEXT.index("北京")
    assert actual.facts["train"].repaired == 1
    twice = answered({"text": "b", "answer_start": 0}) | {"context": "a b, a b"}
    with pytest.raises(DataError, match="at character 0 of the context") as caught:
        load(tmp_path / "q.jsonl", [twice], invalid_answers="repair")
    assert "invalid_answers" not in str(caught.value)
    with pytest.raises(ConfigError, match="invalid_answers is 'fix'"):
        load(tmp_path / "q.jsonl", rows, invalid_answers="fix")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.json", squad(GOOD, context=" "), "question 'a': 'context' is empty"),
        ("q.json", squad(GOOD, context=None), "question 'a': 'context' is None. It must be text"),
        ("q.json", {"questions": []}, "q.json: the list 'data' is missing"),
        ("q.json", {"data": [{"title": "t"}]}, "q.json, article 1: the list 'paragraphs' is missing"),
        ("q.json", {"data": [{"paragraphs": [{"context": "x"}]}]}, "article 1, paragraph 1: the list 'qas' is missing"),
        ("q.json", {"data": []}, "q.json has no questions"),
        ("q.json", [{"a": 1}, {"b": 2}], "q.json, row 1 (line 1): the key 'question' is missing among ['a']"),
        ("q.jsonl", [["x"]], "q.jsonl, row 1 (line 1): list, not an object"),
        (
            "q.jsonl",
            [{"question": "x", "text": "y", "answers": []}],
            "key 'context' is missing among ['question', 'text', ",
        ),
        ("q.csv", [], "is not JSON, by its name and its content"),
    ],
)
def test_a_file_without_questions(tmp_path, name, content, message):
    with pytest.raises(DataError) as error:
        load(tmp_path / name, content)
    assert message in str(error.value)


def test_rows_are_detected_by_content_under_any_file_name(tmp_path):
    rows = [GOOD | {"context": CONTEXT}, GOOD | {"context": CONTEXT, "id": "b"}]
    lines = "\n".join(map(json.dumps, rows))
    for name, content in (("q.json", lines), ("q.jsonl", lines), ("list.json", json.dumps(rows)), ("q.txt", lines)):
        (tmp_path / name).write_text(content)
        assert [row.context for row in QuestionData(str(tmp_path / name)).load().splits["train"]] == [CONTEXT] * 2


def test_a_broken_line_is_skipped_and_a_file_of_only_broken_lines_is_an_error(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "x"\n\xff\n' + json.dumps(GOOD | {"context": CONTEXT}).encode())
    with pytest.raises(DataError, match=r"line 1: not JSON"):
        QuestionData(str(path)).load()
    facts = QuestionData(str(path), on_bad_row="skip").load().facts["train"]
    assert (facts.num_skipped, facts.rows) == (2, 1)
    path.write_bytes(b"{\n")
    with pytest.raises(DataError, match="has no usable row"):
        QuestionData(str(path), on_bad_row="skip").load()


def test_impossible_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"columns has the key 'text', which is unknown\. Valid keys are id"):
        QuestionData("x.jsonl", columns={"text": "q"})
    with pytest.raises(ConfigError, match="on_bad_row is 'ignore'"):
        load(tmp_path / "q.json", squad(GOOD), on_bad_row="ignore")


@needs_real_data
@pytest.mark.parametrize(
    ("name", "questions", "contexts"),
    [("policyqa_dev.json.gz", 3809, 574), ("xquad.en.json", 1190, 240), ("xquad.zh.json", 1190, 240)],
)
def test_every_question_of_real_files_is_valid(name, questions, contexts):
    loaded = QuestionData(os.fspath(real_data(f"qa/{name}")), validation_fraction=0.1).load()
    assert loaded.facts["train"].read == questions
    assert len({question.context for each in loaded.splits.values() for question in each}) == contexts
    held_out = {question.context for question in loaded.splits["validation"]}
    assert held_out and held_out.isdisjoint(question.context for question in loaded.splits["train"])
