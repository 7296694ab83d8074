"""Tests of the audit groups on tasks whose rows may have several windows, with planted mistakes of the model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from framework.audits.audit import Subject
from framework.audits.groups import Groups
from framework.audits.item_metrics import measure_items
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.question_answering.data import QuestionData
from framework.tasks.question_answering.decode import WindowSpans
from framework.tasks.question_answering.task import QuestionAnsweringTask
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.task import TokenClassificationTask

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "he", "she"]
NUM_ROWS = 120


class Decoding:
    """Inference whose results are made by a function of the source."""

    def __init__(self, task, decode):
        self.task = task
        self.decode = decode


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return Tokenizer.from_folder(folder)


def person_of(row: int) -> str:
    return ("he", "she")[row % 2]


def is_missed(row: int) -> bool:
    """Returns True for half of the rows about `she`."""
    return row % 4 == 1


def tagged(tmp_path, tokenizer):
    """Returns a task, its data and a source whose rows of 10 words have two windows or more."""
    task = TokenClassificationTask(max_length=8, stride=3)
    lines = [
        {"tokens": [person_of(row), *"abcdefgab"], "tags": [*"OO", "B-x", "I-x", *"OOOOOO"], "gender": person_of(row)}
        for row in range(NUM_ROWS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TaggedData(str(path))
    return task, data, task.build_sources(data, tokenizer, seed=0)["train"]


def decoded_tags(task: TokenClassificationTask, source):
    """Returns scores that are highest at the true tags, and at O for missed rows."""
    items = np.arange(len(source))
    batch = source.build(StepSequences(np.zeros_like(items), items, items), 0)
    logits = 9.0 * functional.one_hot(batch.targets["labels"].clamp(min=0), len(task.tags))
    decoded = task.decode({"logits": logits}, batch)
    outside = functional.one_hot(torch.tensor(0), len(task.tags)).numpy()
    for item, part in enumerate(source.records):
        if is_missed(part.row):
            decoded[item] = np.tile(9.0 * outside, (len(decoded[item]), 1))
    return decoded


def subject_of(task, data, tokenizer, source) -> Subject:
    trained = SimpleNamespace(task=task, tokenizer=tokenizer, file_layout=data)
    return Subject(trained, "validation", lambda: source, lambda: source, 0)


def found(groups: Groups, subject: Subject, decode):
    groups.check(subject)
    finding = groups.measure(Decoding(subject.task, lambda source: decode(subject.task, source)))
    return finding, {(part["group"], part["measure"]): part for part in finding.parts}


@pytest.mark.parametrize("kind", ["columns", "terms"])
def test_missed_entities_of_a_group(tmp_path, tokenizer, kind):
    task, data, source = tagged(tmp_path, tokenizer)
    assert len(source) >= 2 * NUM_ROWS
    (tmp_path / "terms.yaml").write_text("he: [he]\nshe: [she]\n")
    given = {"columns": ["gender"]} if kind == "columns" else {"terms": str(tmp_path / "terms.yaml")}
    finding, parts = found(Groups(**given, num_samples=200), subject_of(task, data, tokenizer, source), decoded_tags)
    # 60 rows and entities each; 30 entities of `she` are missed, with 2 of 10 words.
    values = {
        ("he", "entity_f1"): 1.0,
        ("she", "entity_precision"): 1.0,
        ("she", "entity_recall"): 1 / 2,
        ("she", "entity_f1"): 2 * 30 / (30 + 60),
        ("she", "token_accuracy"): 1 - 30 * 2 / 600,
        ("between groups", "entity_f1_difference"): 1 / 3,
    }
    for name, value in values.items():
        assert parts[name]["value"] == pytest.approx(value, abs=1e-12), name
        assert parts[name]["rows"] == (120 if name[0] == "between groups" else 60)
    difference = parts["between groups", "entity_f1_difference"]
    assert 0.1 < difference["low"] < 1 / 3 < difference["high"] < 0.6
    assert parts["between groups", "entity_precision_difference"]["value"] == 0.0
    assert finding.measure == "largest entity f1 difference between groups"
    assert (finding.rate, finding.num_cases) == (pytest.approx(1 / 3), 120)


def test_metrics_of_all_rows_are_the_scores_of_the_split(tmp_path, tokenizer):
    task, _, source = tagged(tmp_path, tokenizer)
    decoded = decoded_tags(task, source)
    measured = measure_items(Decoding(task, lambda _: decoded), source)
    rows = np.arange(NUM_ROWS)
    values = {name: metric.values(rows, np.ones((1, NUM_ROWS)))[0] for name, metric in measured.metrics.items()}
    assert values == task.score(source, decoded)
    assert values["entity_f1"] == 2 * 90 / (90 + 120)
    assert len(measured.predictions) == NUM_ROWS


def decoded_answers(task: QuestionAnsweringTask, source):
    """Returns the first token of each context, which is right; two tokens for missed rows. Other windows score less."""
    none = np.zeros(0, dtype=np.int32)
    return [
        WindowSpans(none[:0], none[:0], none.astype(np.float32), 0.0)
        if window.first
        else WindowSpans(
            np.array([0], np.int32), np.array([int(is_missed(window.row))], np.int32), np.ones(1, np.float32), 0.0
        )
        for window in source.records
    ]


def test_wrong_answers_of_a_group(tmp_path, tokenizer):
    task = QuestionAnsweringTask(max_length=14, stride=4, max_question_length=3, max_answer_length=3, n_best=4)
    lines = [
        {
            "question": person_of(row),
            "context": "b c d e f g h b c d e f",
            "answers": [{"text": "b", "answer_start": 0}],
            "gender": person_of(row),
        }
        for row in range(NUM_ROWS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = QuestionData(str(path))
    source = task.build_sources(data, tokenizer, seed=0)["train"]
    assert len(source) == 2 * NUM_ROWS
    subject = subject_of(task, data, tokenizer, source)
    finding, parts = found(Groups(["gender"], num_samples=200), subject, decoded_answers)
    # 30 of the 60 answers about `she` have one word too many: F1 2 * 1 / 3.
    assert parts["he", "exact_match"]["value"] == parts["he", "f1"]["value"] == 1.0
    assert parts["she", "exact_match"]["value"] == 0.5
    assert parts["she", "f1"]["value"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)
    assert finding.rate == pytest.approx(1 / 6, abs=1e-12)
    assert finding.interval.low > 0.05
    assert task.score(source, decoded_answers(task, source)) == pytest.approx({"exact_match": 0.75, "f1": 11 / 12})


def test_a_metric_without_entities_in_a_group_has_no_difference(tmp_path, tokenizer):
    task = TokenClassificationTask(max_length=8, stride=3)
    lines = [
        {"tokens": ["a"], "tags": ["B-x" if row % 2 else "O"], "gender": person_of(row)} for row in range(NUM_ROWS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TaggedData(str(path))
    subject = subject_of(task, data, tokenizer, task.build_sources(data, tokenizer, seed=0)["train"])
    with pytest.raises(DataError, match=r"entity_f1 is undefined in a group of gender\. A comparison needs a value"):
        found(Groups(["gender"], num_samples=100), subject, decoded_tags)


def test_files_without_columns_are_rejected(tmp_path, tokenizer):
    path = tmp_path / "rows.conll"
    path.write_text("a B-x\n\nb O\n")
    data, task = TaggedData(str(path)), TokenClassificationTask()
    subject = subject_of(task, data, tokenizer, task.build_sources(data, tokenizer, seed=0)["train"])
    with pytest.raises(DataError) as error:
        Groups(["gender"]).check(subject)
    assert str(error.value) == (
        f"{path}, sentence 1 (line 1) is not a row with columns. Groups are read from columns of tables and of JSON "
        "with an object for each row. Convert the file, or give audit.groups.terms."
    )


def test_tasks_without_metrics_of_rows_are_rejected(tokenizer):
    with pytest.raises(ConfigError, match="EmbeddingTask has metrics of whole splits only"):
        Groups(["gender"]).check(subject_of(EmbeddingTask(), None, tokenizer, None))
