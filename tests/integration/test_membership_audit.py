"""Tests of the audit membership as a command: a memorized training set is found, and a fresh model leaks nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands.in_process import FINETUNE, TINY, run_command, train_vocabulary, write_rows
from tests.support.processes.ranks import Ranks
from tests.support.tasks.commands import prepare

WORDS = [f"{first}{vowel}{last}" for first in "bcdfghjk" for vowel in "aeiou" for last in "lmnprstvxz"]


@pytest.fixture(scope="module")
def memorized(tmp_path_factory) -> Path:
    """Returns a folder with 40 training rows with random labels, 40 other ones, and a run that memorized the former.

    Each row has words of its own. The run `fresh` has the same rows and its starting weights.
    """
    folder = tmp_path_factory.mktemp("memorized")
    random = np.random.default_rng(7)
    words = iter(WORDS)
    texts = [" ".join(next(words) for _ in range(2 + number % 3)) for number in range(120)]
    labels = [label for _ in range(3) for label in random.permutation(["0", "1"] * 20).tolist()]
    write_rows(folder / "train.csv", texts[:40], labels[:40])
    # Two rows of the validation are training rows.
    write_rows(folder / "dev.csv", [*texts[40:80], *texts[:2]], [*labels[40:80], *labels[:2]])
    write_rows(folder / "test.csv", texts[80:120], labels[80:120])
    train_vocabulary([" ".join(WORDS)] * 3, 1000, folder / "tokenizer")
    (folder / "texts.txt").write_text("\n\n".join(". ".join(texts[start : start + 6]) for start in range(0, 120, 3)))
    data = ["data.train=train.csv", "data.validation=dev.csv", "data.validation_fraction=0"]
    small = ["trainer.global_batch_size=8", "trainer.max_epochs=null"]
    long = ["trainer.max_steps=60", "optimizer.lr=0.005", "run.id=mine"]
    fresh = ["trainer.max_steps=1", "optimizer.lr=1e-12", "run.id=fresh"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for sizes in (long, fresh):
            assert run_command(patch, "train", *FINETUNE, *data, *small, *sizes) == 0
        assert run_command(patch, "export", "run=mine", "output=exported", "compare=false") == 0
    return folder


def audited(folder: Path) -> dict:
    return json.loads((folder / "analysis" / "audit_membership.json").read_text())


def parts_of(result: dict) -> dict[tuple[str, str], dict]:
    return {(part["rows"], part["measure"]): part for part in result["parts"]}


def test_memorized_rows_are_found_and_a_fresh_model_leaks_nothing(memorized, monkeypatch, capfd):
    monkeypatch.chdir(memorized)
    assert run_command(monkeypatch, "audit", "run=mine", "audit=membership", "fail_above=0.1") == 1
    assert "AuditError: the audit membership has the rate 0.4" in capfd.readouterr().err
    result = audited(memorized / "runs" / "mine")
    parts = parts_of(result)
    whole = parts["all", "auc"]
    assert (whole["members"], whole["non_members"], result["cases"]) == (40, 40, 80)
    assert whole["value"] > 0.9
    assert whole["low"] > 0.8
    assert result["rate"] == pytest.approx(whole["value"] - 0.5, abs=1e-4)
    assert result["interval"]["low"] == pytest.approx(whole["low"] - 0.5, abs=2e-4)
    assert result["worst"] == []
    assert (parts["all", "members_found_at_1_percent"]["value"], len(result["parts"])) == (None, len(parts))
    assert "2 of 42 rows of validation are left out, because a training row has the same tokens." in result["notes"]
    assert "1 % false alarms cannot be measured with 40 non-members; it needs 100." in result["notes"]
    assert "0.1 % false alarms cannot be measured with 40 non-members; it needs 1,000." in result["notes"]
    assert run_command(monkeypatch, "audit", "run=fresh", "audit=membership", "fail_above=0.2") == 0
    fresh = parts_of(audited(memorized / "runs" / "fresh"))["all", "auc"]
    assert fresh["low"] < 0.5 < fresh["high"]
    assert audited(memorized / "runs" / "fresh")["interval"]["low"] == 0.0


def test_members_found_and_parts_need_enough_rows(memorized, monkeypatch, capfd):
    """150 members and non-members: numbers at 1 %, and of each class and range of lengths."""
    monkeypatch.chdir(memorized)
    random = np.random.default_rng(11)
    for name in ("train", "test"):
        texts = [" ".join(random.choice(WORDS, 4 + number % 4)) for number in range(150)]
        write_rows(Path(f"many_{name}.csv"), texts, [str(number // 4 % 2) for number in range(150)])
    files = ["data.train=many_train.csv", "data.test=many_test.csv"]
    settings = ["run=exported", "audit=membership", "output=many"]
    assert run_command(monkeypatch, "audit", *settings, *files) == 0
    result = audited(memorized / "many")
    parts = parts_of(result)
    # Neither file has rows that the model was trained on.
    assert parts["all", "auc"]["low"] < 0.5 < parts["all", "auc"]["high"]
    assert parts["all", "members_found_at_1_percent"]["value"] <= 0.1
    assert parts["all", "members_found_at_0.1_percent"]["value"] is None
    assert parts["class 0", "auc"]["members"] + parts["class 1", "auc"]["members"] == 150
    lengths = [rows for rows, measure in parts if rows.endswith("tokens") and measure == "auc"]
    assert sum(parts[rows, "auc"]["members"] for rows in lengths) == 150
    # Texts of 4 to 7 words and two special tokens; words of a vocabulary of whole words are one token each.
    assert lengths == ["6 tokens", "7 tokens", "8 tokens", "9 tokens"]
    assert run_command(monkeypatch, "audit", *settings, *files, "audit.membership.max_rows=30") == 0
    assert parts_of(audited(memorized / "many"))["all", "auc"]["members"] == 30
    capfd.readouterr()


def test_splits_of_other_lengths_are_named(memorized, monkeypatch, capfd):
    monkeypatch.chdir(memorized)
    random = np.random.default_rng(12)
    texts = [" ".join(random.choice(WORDS, 12 + number % 2)) for number in range(40)]
    write_rows(Path("long.csv"), texts, ["0", "1"] * 20)
    settings = ["run=mine", "audit=membership", "output=other", "data.test=long.csv"]
    assert run_command(monkeypatch, "audit", *settings) == 0
    result = audited(memorized / "other")
    assert parts_of(result)["all", "auc_of_shortness"]["value"] == 1.0
    assert any(note.startswith("Lengths alone tell the two splits apart") for note in result["notes"])
    capfd.readouterr()


def test_two_ranks_write_the_file_that_one_writes_and_the_card_has_a_row(memorized, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(memorized)
    files = []
    for num_ranks in (1, 2):
        overrides = ["run=mine", "audit=membership", f"output={tmp_path / str(num_ranks)}"]
        ranks = Ranks([*overrides, "micro_batch_tokens=128"], num_ranks, tmp_path / f"{num_ranks}.txt", command="audit")
        assert ranks.wait(120) == [0] * num_ranks, ranks.read_output()
        files.append((tmp_path / str(num_ranks) / "analysis" / "audit_membership.json").read_bytes())
    assert files[0] == files[1]
    assert run_command(monkeypatch, "audit", "run=mine", "audit=membership") == 0
    assert run_command(monkeypatch, "export", "run=mine", f"output={tmp_path / 'export'}", "compare=false") == 0
    card = (tmp_path / "export" / "README.md").read_text()
    assert "| membership | The loss tells training rows from rows of validation with an area under the ROC" in card
    capfd.readouterr()


def test_pretraining_compares_the_loss_of_masked_words(memorized, monkeypatch, capfd):
    monkeypatch.chdir(memorized)
    corpus = ["corpus=text", "corpus.sources.text.files=texts.txt", "corpus.sources.text.documents=blank_lines"]
    assert run_command(monkeypatch, "prepare", *corpus, "vocabulary=given", "vocabulary.path=tokenizer", "store=s") == 0
    sizes = ["trainer.max_steps=1", "trainer.global_batch_size=4", "task.sequence_length=12", "optimizer.lr=1e-12"]
    data = ["data.store=s", "data.validation_fraction=0.45", "tokenizer.path=tokenizer", "run.id=masked"]
    pretrain = ["experiment=pretrain_demo", *TINY, *sizes, *data, "logger=none", "precision=fp32"]
    assert run_command(monkeypatch, "train", *pretrain) == 0
    assert run_command(monkeypatch, "audit", "run=masked", "audit=membership") == 0
    result = audited(memorized / "runs" / "masked")
    whole = parts_of(result)["all", "auc"]
    assert whole["low"] < 0.5 < whole["high"]
    assert whole["members"] == whole["non_members"] >= 20
    assert not any("class" in part["rows"] for part in result["parts"])
    capfd.readouterr()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run=mine", "split=train"], "split=train contains members."),
        (["run=mine", "data.train=train.csv"], "split=train contains members."),
        (["run=mine", "audit.membership.max_rows=5"], "audit.membership.max_rows is 5. It must be at least 20."),
        (["run=exported", "data.test=test.csv"], "Its training rows are needed. Give data.train=FILE in addition to"),
        (["run=mine", "data.test=train.csv"], "and test has 0 that are not among them."),
    ],
)
def test_bad_input_is_one_error_before_the_model_is_moved(memorized, monkeypatch, capfd, settings, message):
    monkeypatch.chdir(memorized)
    monkeypatch.setattr("framework.audit.open_inference", None)
    capfd.readouterr()
    assert run_command(monkeypatch, "audit", "audit=membership", *settings) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_task_without_losses_of_rows_is_rejected(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, "train", *prepare("embedding", tmp_path), "run.id=one", "trainer.max_steps=1") == 0
    capfd.readouterr()
    assert run_command(monkeypatch, "audit", "run=one", "audit=membership") == 2
    assert "EmbeddingTask has no losses of single rows." in capfd.readouterr().err
