"""Contrast sets: pairs of two files or of two columns, their scores, and bad input."""

from types import SimpleNamespace

import pytest

from framework.audits.contrast import Contrast
from framework.errors import ConfigError, DataError


def subject(labels: tuple[str, ...] = ("0", "1"), fields: tuple[str, ...] = ("text",)) -> SimpleNamespace:
    return SimpleNamespace(masking=None, task=SimpleNamespace(single_labels=labels, fields=fields))


def predicted(*labels: str) -> list[dict]:
    return [{"label": label, "probability": 0.6 + 0.01 * index} for index, label in enumerate(labels)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "original.csv").write_text("text,label\ngood film,pos\nbad film,neg\ngood,pos\nbad,neg\n")
    (tmp_path / "edited.csv").write_text("text,label\nbad film,neg\ngood film,pos\nno good,neg\nnot bad,pos\n")
    return str(tmp_path / "original.csv"), str(tmp_path / "edited.csv")


def test_pairs_are_right_if_both_of_their_texts_are(files):
    audit = Contrast(*files, labels={"pos": "1", "neg": "0"})
    audit.check(subject())
    assert [row["text"] for row in audit.rows()][:5] == ["good film", "bad film", "good", "bad", "bad film"]
    finding = audit.judge(predicted("1", "0", "1", "1", "0", "1", "1", "1"))
    # By hand: originals 3 of 4, edits 3 of 4, both right in the first two pairs.
    assert [part["accuracy"] for part in finding.parts] == [0.75, 0.75, 0.5]
    assert (finding.rate, finding.num_cases) == (0.5, 4)
    assert [(case.part, case.text, case.expected) for case in finding.worst] == [
        ("edited", "no good", "0"),
        ("original", "bad", "0"),
    ]
    assert "75.0% on the original texts and 75.0% on the edited ones; in 50.0% of 4 pairs" in finding.summary


def test_edits_may_be_columns_of_one_file(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,x,b,y\ngood,1,bad,0\n")
    audit = Contrast(
        str(tmp_path / "pairs.csv"),
        text_column="a",
        label_column="x",
        edited_text_column="b",
        edited_label_column="y",
    )
    audit.check(subject())
    assert audit.rows() == [{"text": "good"}, {"text": "bad"}]
    assert audit.judge(predicted("1", "0")).rate == 0.0


def test_files_of_unequal_length_are_rejected(files, tmp_path):
    (tmp_path / "short.csv").write_text("text,label\nbad film,neg\n")
    with pytest.raises(DataError, match=r"original\.csv has 4 rows and .*short\.csv has 1\."):
        Contrast(files[0], str(tmp_path / "short.csv")).check(subject(("neg", "pos")))


def test_labels_that_the_model_lacks_are_named_with_a_mapping(files):
    with pytest.raises(ConfigError) as raised:
        Contrast(*files).check(subject())
    assert str(raised.value) == (
        "the labels neg, pos are not labels of the model, which are 0, 1. Each label needs a label of the model. Map "
        "all of them, for example 'audit.contrast.labels={neg: 0, pos: 1}'."
    )
    with pytest.raises(ConfigError, match=r"`audit.contrast.labels` maps pos to 2, which is not a label of the model."):
        Contrast(*files, labels={"neg": "0", "pos": "2"}).check(subject())


def test_tasks_without_one_label_and_one_text_are_rejected(files):
    with pytest.raises(ConfigError, match="does not predict one label per row, which the audit contrast needs"):
        Contrast(*files).check(subject(labels=()))
    with pytest.raises(ConfigError, match="reads the fields text, pair, but the audit contrast has one text per case"):
        Contrast(*files).check(subject(fields=("text", "pair")))


def test_edits_need_a_file_or_columns(files):
    with pytest.raises(ConfigError, match=r"audit\.contrast\.edited is null"):
        Contrast(files[0], edited_text_column="edit")
