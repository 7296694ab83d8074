"""Behaviour tests: labels of suites, rates and intervals, edits of own rows, and bad input."""

import json
from types import SimpleNamespace

import pytest

from framework.audits.behaviour import Behaviour
from framework.errors import ConfigError, DataError


def subject(labels=("0", "1"), records=(), allows_augmentation=True, split="validation", seed=0) -> SimpleNamespace:
    task = SimpleNamespace(single_labels=labels, fields=("text",), allows_augmentation=allows_augmentation)
    return SimpleNamespace(task=task, source=SimpleNamespace(records=records), split=split, seed=seed)


def predicted(rows, positive) -> list[dict]:
    """Returns predictions whose probability of `1` is a function of the text."""
    return [{"probabilities": {"0": 1 - positive(row["text"]), "1": positive(row["text"])}} for row in rows]


@pytest.fixture
def suite(tmp_path):
    def write(*tests: dict) -> str:
        path = tmp_path / "suite.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in tests))
        return str(path)

    return write


WORDS = {"name": "words", "kind": "label", "cases": ["good", "bad", "fine"], "labels": ["pos", "neg", "pos"]}
NEUTRAL = {"name": "neutral", "kind": "label", "label": "neutral", "cases": ["the film"]}
SAME = {"name": "places", "kind": "same", "cases": [["good", "good there"], ["bad", "bad here"]]}
MAPPING = {"pos": "1", "neg": "0"}


def by_word(text: str) -> float:
    """Returns a model that knows `good` and `bad`, and is confused by `here`."""
    return 0.9 if "good" in text or "here" in text.split() else 0.1 if "bad" in text else 0.55


def test_rates_of_tests_and_of_all_cases(suite):
    audit = Behaviour(suite(WORDS, SAME), labels=MAPPING)
    audit.check(subject())
    rows = audit.rows()
    assert [row["text"] for row in rows] == ["good", "bad", "fine", "good", "good there", "bad", "bad here"]
    finding = audit.judge(predicted(rows, by_word))
    assert [(part["test"], part["cases"], part["failed"], part["rate"]) for part in finding.parts] == [
        ("words", 3, 0, 0.0),
        ("places", 2, 1, 0.5),
    ]
    assert (finding.rate, finding.num_cases, finding.interval.method) == (0.2, 5, "Wilson, 95 %")
    assert finding.summary == "1 of 5 cases of 2 tests fail. The highest rate is 50.0%, in 'places'."
    (case,) = finding.worst
    assert (case.part, case.text, case.expected, case.predicted) == (
        "places",
        "bad\n→ bad here",
        "0 (0.900)",
        "1 (0.900)",
    )


def test_undecided_predictions_may_be_a_label(suite):
    audit = Behaviour(suite(WORDS, NEUTRAL), labels=MAPPING, neutral="neutral")
    audit.check(subject())
    finding = audit.judge(predicted(audit.rows(), by_word))
    # `fine` has the probability 0.55, so it is undecided, as the neutral text is.
    assert [part["failed"] for part in finding.parts] == [1, 0]
    with pytest.raises(ConfigError, match="neutral is 'neutral', but the model has 3 labels"):
        Behaviour(suite(WORDS), neutral="neutral").check(subject(("neg", "neutral", "pos")))


def test_tests_of_labels_that_are_not_mapped_are_reported_and_not_run(suite):
    audit = Behaviour(suite(WORDS, NEUTRAL), labels=MAPPING)
    audit.check(subject())
    finding = audit.judge(predicted(audit.rows(), by_word))
    assert [part["rate"] for part in finding.parts] == [0.0, None]
    assert finding.notes == ["Not run, because it expects the label neutral, which is not mapped: 'neutral'."]


def test_labels_that_the_model_lacks_are_named_with_a_mapping(suite):
    with pytest.raises(ConfigError) as raised:
        Behaviour(suite(WORDS, NEUTRAL)).check(subject())
    assert str(raised.value) == (
        "the labels neg, neutral, pos are not labels of the model, which are 0, 1. Each label needs a label of the "
        "model. Map all of them, for example 'audit.behaviour.labels={neg: 0, pos: 1}'."
    )
    with pytest.raises(ConfigError, match=r"maps pos to 2, which is not a label of the model. Its labels are 0, 1."):
        Behaviour(suite(WORDS), labels={"pos": "2"}).check(subject())
    with pytest.raises(DataError, match=r"no test of .* can be run. 'neutral': it expects the label neutral"):
        Behaviour(suite(NEUTRAL), labels=MAPPING).check(subject())


def test_own_rows_are_edited_and_rows_without_change_are_no_cases():
    records = [SimpleNamespace(text=text) for text in ("It is good.", "bad", "It is good and more")]
    audit = Behaviour(edits=["contractions", "punctuation", "width"], tolerance=0.0)
    audit.check(subject(records=records))
    assert [row["text"] for row in audit.rows()] == [
        *("It is good.", "It's good."),
        *("It is good and more", "It's good and more"),
        *("It is good.", "It is good", "bad", "bad.", "It is good and more", "It is good and more."),
    ]
    finding = audit.judge(predicted(audit.rows(), lambda text: 0.1 if "'" in text else 0.9))
    assert [(part["cases"], part["failed"]) for part in finding.parts] == [(2, 2), (3, 0), (0, 0)]
    assert finding.interval.method == "bootstrap, 95 %"
    assert finding.notes == ["Not run, because the edit applies to no row: 'width'."]


def test_a_sample_of_own_rows_depends_on_the_seed():
    records = [SimpleNamespace(text=f"film {number}") for number in range(50)]

    def rows(seed: int, max_rows: int) -> list[str]:
        audit = Behaviour(edits=["punctuation"], max_rows=max_rows)
        audit.check(subject(records=records, seed=seed))
        return [row["text"] for row in audit.rows()]

    assert rows(1, 10) == rows(1, 10) != rows(2, 10)
    assert len(rows(1, 10)) == 20 and set(rows(1, 10)) < set(rows(1, 30))


def test_data_without_texts_to_edit_is_rejected():
    with pytest.raises(ConfigError, match="split=train has no texts to edit"):
        Behaviour().check(subject(split="train"))
    with pytest.raises(ConfigError, match="does not allow edits of texts, which the audit behaviour makes"):
        Behaviour().check(subject(allows_augmentation=False))
    with pytest.raises(ConfigError, match="does not predict one label per row, which the audit behaviour needs"):
        Behaviour().check(subject(labels=()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edits": ["typo"]}, "contains 'typo', which is unknown. Choose some of typos, case"),
        ({"max_rows": 0}, "max_rows is 0. It must be at least 1."),
        ({"tolerance": 1.0}, "tolerance is 1.0. It must be at least 0 and below 1."),
    ],
)
def test_bad_settings_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Behaviour(**arguments)
