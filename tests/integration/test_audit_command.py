"""Tests of framework.audit: its files, its exit codes, several processes, audits of users, and its errors."""

import json
from pathlib import Path

import pytest

import framework
from framework.errors import AuditError
from tests.support.commands.in_process import (
    FINETUNE,
    TINY,
    audited,
    call,
    here,
    run_command,
    tokenizer_folder,
    train_vocabulary,
)
from tests.support.commands.in_process import assert_clear_error as assert_clear
from tests.support.processes.ranks import Ranks
from tests.support.tasks.commands import prepare

__all__ = ["call", "here", "tokenizer_folder"]

FILLERS = [f"w{letter}" for letter in "abcdefgh"]
TEXTS = [f"{FILLERS[n // 2 % 8]} {('good', 'bad')[n % 2]} {FILLERS[n // 16]}" for n in range(128)]
CONTRAST = ["audit=contrast", "audit.contrast.original=original.csv", "audit.contrast.edited=edited.csv"]
FOREIGN = """
from framework.audits.audit import Finding, RowAudit


class Words(RowAudit):
    def __init__(self, word: str) -> None:
        self.word = word

    def check(self, subject) -> None:
        assert subject.split == "validation" and len(subject.source) > 0

    def rows(self):
        return [{"text": self.word}]

    def judge(self, predictions):
        return Finding("zeros", float(predictions[0]["label"] == "0"), None, 1, "One word.")
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Returns a folder with the run `mine`, which knows that `good` means 1 and `bad` means 0, and its export."""
    folder = tmp_path_factory.mktemp("planted")
    train_vocabulary([*TEXTS, "not not not"], 60, folder / "tokenizer")
    lines = [f"{text},{1 - number % 2}" for number, text in enumerate(TEXTS)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (folder / "original.csv").write_text("text,label\nwa good wb,1\nwa bad wb,0\nwb good,1\nwb bad,0\n")
    (folder / "edited.csv").write_text("text,label\nwa bad wb,0\nwa good wb,1\nwb not good,0\nwb not bad,1\n")
    (folder / "words.py").write_text(FOREIGN)
    sizes = ["trainer.max_steps=60", "trainer.global_batch_size=16", "optimizer.lr=0.005"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *FINETUNE, *sizes) == 0
    return folder


def test_results_are_files_a_section_a_row_of_the_card_and_an_exit_code(planted, monkeypatch, capfd):
    monkeypatch.chdir(planted)
    assert run_command(monkeypatch, "audit", "run=mine", *CONTRAST) == 0
    out = capfd.readouterr().out
    assert "pairs that are not both right" in out and "0.5000" in out
    result = audited(Path("runs/mine"), "contrast")
    assert (result["rate"], result["cases"]) == (0.5, 4)
    assert result["facts"]["settings"].startswith("original=original.csv, edited=edited.csv, text_column=text")
    assert {case["text"] for case in result["worst"]} == {"wb not good", "wb not bad"}
    report = Path("runs/mine/report.html")
    assert "Audit: contrast" in report.read_text() and "wb not good" in report.read_text()
    report.unlink()
    assert run_command(monkeypatch, "report", "run=mine") == 0
    assert "Audit: contrast" in report.read_text()
    assert run_command(monkeypatch, "export", "run=mine", "output=export", "compare=false") == 0
    card = Path("export/README.md").read_text()
    assert "| contrast | Accuracy is 100.0% on the original texts and 50.0% on the edited ones;" in card
    capfd.readouterr()
    for limit, code in (("0.5", 0), ("0.4", 1), ("{contrast: 0.4}", 1), ("{contrast: 0.6}", 0)):
        assert run_command(monkeypatch, "audit", "run=mine", *CONTRAST, f"fail_above={limit}") == code
    error = "AuditError: the audit contrast has the rate 0.5000 (pairs that are not both right), above fail_above=0.4."
    assert error in capfd.readouterr().err
    with pytest.raises(AuditError):
        framework.audit.run(["run=mine", *CONTRAST, "fail_above=0.4"])


def test_results_of_an_export_are_beside_it_without_texts_if_so_chosen(planted, monkeypatch, capfd):
    monkeypatch.chdir(planted)
    if not Path("exported").exists():
        assert run_command(monkeypatch, "export", "run=mine", "output=exported", "compare=false") == 0
    assert run_command(monkeypatch, "audit", "run=exported", *CONTRAST, "report_examples=0") == 0
    assert audited(planted / "exported_audit", "contrast")["worst"] == []
    assert "wb not good" not in (planted / "exported_audit" / "report.html").read_text()
    assert run_command(monkeypatch, "audit", "run=exported", *CONTRAST, "output=mine_too") == 0
    assert audited(planted / "mine_too", "contrast")["rate"] == 0.5


def test_a_planted_weakness_fails_exactly_its_test(planted, monkeypatch, capfd):
    """The run knows only the words good and bad. Negation is the weakness."""
    monkeypatch.chdir(planted)
    words = {"a": FILLERS[:4], "b": FILLERS[4:]}
    tests = [
        {"name": "words", "kind": "label", "templates": ["{a} good {b}", "{a} bad {b}"], "labels": [1, 0]},
        {"name": "negation", "kind": "label", "templates": ["{a} not good {b}", "{a} not bad {b}"], "labels": [0, 1]},
        {"name": "places", "kind": "same", "tolerance": 0.1, "templates": [["{a} good {b}", "{b} good {a}"]]},
        {
            "name": "more",
            "kind": "not_lower",
            "tolerance": 0.1,
            "label": 1,
            "templates": [["good {a}", "good {a} good"]],
        },
    ]
    Path("suite.jsonl").write_text("".join(json.dumps(test | {"words": words}) + "\n" for test in tests))
    assert run_command(monkeypatch, "audit", "run=mine", "audit=behaviour", "audit.behaviour.suite=suite.jsonl") == 0
    result = audited(Path("runs/mine"), "behaviour")
    rates = {part["test"]: (part["cases"], part["rate"]) for part in result["parts"]}
    assert rates == {"words": (32, 0.0), "negation": (32, 1.0), "places": (16, 0.0), "more": (4, 0.0)}
    assert {case["part"] for case in result["worst"]} == {"negation"}


def test_own_rows_are_edited_alike_by_two_ranks(planted, monkeypatch, tmp_path):
    monkeypatch.chdir(planted)
    files = []
    for num_ranks in (1, 2):
        overrides = ["run=mine", "audit=[behaviour,contrast]", *CONTRAST[1:], f"output={tmp_path / str(num_ranks)}"]
        overrides += ["audit.behaviour.edits=[url,case]", "data.test=rows.csv"]
        ranks = Ranks(overrides, num_ranks, tmp_path / f"{num_ranks}.txt", command="audit")
        assert ranks.wait(120) == [0] * num_ranks, ranks.read_output()
        folder = tmp_path / str(num_ranks) / "analysis"
        files.append([(folder / f"audit_{name}.json").read_bytes() for name in ("behaviour", "contrast")])
    assert files[0] == files[1]
    parts = json.loads(files[0][0])["parts"]
    assert [(part["test"], part["cases"]) for part in parts] == [("url", 128), ("case", 128)]


@pytest.fixture(scope="module")
def masked_words(planted) -> Path:
    """Returns the folder of `planted` with the pre-trained run `masked` over the same words."""
    (planted / "texts.txt").write_text("\n\n".join([". ".join(TEXTS[start : start + 8]) for start in range(0, 128, 8)]))
    corpus = ["corpus.sources.text.files=texts.txt", "corpus.sources.text.documents=blank_lines", "corpus=text"]
    vocabulary = ["vocabulary=given", "vocabulary.path=tokenizer", "store=store", "num_workers=1"]
    sizes = ["trainer.max_steps=2", "trainer.global_batch_size=4", "task.sequence_length=32", "data.store=store"]
    pretrain = ["experiment=pretrain_demo", *TINY, *sizes, "data.validation_fraction=0.2", "tokenizer.path=tokenizer"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(planted)
        assert run_command(patch, "prepare", *corpus, *vocabulary) == 0
        assert run_command(patch, "train", *pretrain, "logger=none", "precision=fp32", "run.id=masked") == 0
    return planted


ATTACK = ["audit=attack", "audit.attack.candidates=masked", "audit.attack.max_rows=12", "data.test=rows.csv"]


def test_an_attack_finds_the_words_that_decide_and_two_ranks_find_the_same(masked_words, monkeypatch, tmp_path):
    monkeypatch.chdir(masked_words)
    files = []
    for num_ranks in (1, 2):
        overrides = ["run=mine", *ATTACK, f"output={tmp_path / str(num_ranks)}", "fail_above=0.9"]
        ranks = Ranks(overrides, num_ranks, tmp_path / f"{num_ranks}.txt", command="audit")
        assert ranks.wait(120) == [1] * num_ranks, ranks.read_output()
        assert ranks.read_output().count("AuditError") == 1
        files.append((tmp_path / str(num_ranks) / "analysis" / "audit_attack.json").read_bytes())
    assert files[0] == files[1]
    result = json.loads(files[0])
    values = {part["value of"]: part["value"] for part in result["parts"]}
    assert (result["rate"], result["cases"], values["accuracy on the rows"]) == (1.0, 12, 1.0)
    assert values["accuracy under attack"] == 0.0
    # One of three words is changed, the one that decides.
    assert values["mean share of changed words"] == pytest.approx(1 / 3, abs=1e-4)
    assert {case["part"].split(" → ")[0] for case in result["worst"]} == {"good", "bad"}


def test_an_attack_keeps_its_budget(masked_words, monkeypatch, tmp_path):
    """A row has 3 words. The budget allows its prediction, 2 deletions, and one more prediction."""
    monkeypatch.chdir(masked_words)
    arguments = ["run=mine", *ATTACK, f"output={tmp_path}", "audit.attack.max_queries=4"]
    assert run_command(monkeypatch, "audit", *arguments) == 0
    values = {part["value of"]: part["value"] for part in audited(tmp_path, "attack")["parts"]}
    assert values["mean predictions for a row"] <= 4


def test_candidates_come_from_a_model_with_a_masked_word_head(masked_words, monkeypatch, capfd):
    monkeypatch.chdir(masked_words)
    assert run_command(monkeypatch, "audit", "run=mine", "audit=attack", "audit.attack.candidates=mine") == 2
    assert "audit.attack.candidates=mine has no masked-word head." in capfd.readouterr().err
    assert run_command(monkeypatch, "audit", "run=mine", *ATTACK, "split=train", "data.test=null") == 2
    assert "split=train has no texts to edit." in capfd.readouterr().err


def test_an_audit_may_live_elsewhere(planted, monkeypatch, capfd):
    monkeypatch.chdir(planted)
    monkeypatch.syspath_prepend(str(planted))
    own = ["+audit.words._target_=words.Words", "+audit.words.word=bad"]
    assert run_command(monkeypatch, "audit", "run=mine", *CONTRAST, *own) == 0
    assert audited(Path("runs/mine"), "words")["rate"] == 1.0
    assert audited(Path("runs/mine"), "contrast")["rate"] == 0.5
    capfd.readouterr()
    assert run_command(monkeypatch, "audit", "run=mine", "+audit.words._target_=fractions.Fraction") == 2
    assert "`audit.words._target_` is Fraction, which is no audit." in capfd.readouterr().err
    assert run_command(monkeypatch, "audit", "run=mine", "+audit.words._target_=builtins.dict") == 2
    assert "is 'builtins.dict', which is not a class with a signature." in capfd.readouterr().err


def test_a_check_writes_nothing(planted, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(planted)
    assert run_command(monkeypatch, "audit", "run=mine", *CONTRAST, "check=true", f"output={tmp_path / 'new'}") == 0
    out = capfd.readouterr().out
    assert "nothing was written" in out and "8 rows" in out and "6" in out.split("different rows")[1]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=nowhere"], "`audit` names no audit. The command runs at least one."),
        (["run=nowhere", *CONTRAST, "fail_above=2"], "`fail_above` is 2.0. It must be from 0 to 1."),
        (["run=nowhere", *CONTRAST, "fail_above={groups: 0.1}"], "`fail_above` names the audit 'groups', which is not"),
        (["run=nowhere", "audit=contrast"], "audit.contrast.original"),
        (["run=nowhere", *ATTACK, "audit.attack.max_changed=2"], "audit.attack.max_changed is 2.0."),
        (["run=nowhere", *CONTRAST, "report_examples=-1"], "`report_examples` is -1."),
    ],
)
def test_bad_settings_are_rejected_before_the_model_is_read(call, overrides, message):
    assert_clear(call("audit", *overrides), message)


def test_a_task_without_single_labels_is_rejected(planted, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    overrides = [*prepare("token_classification", tmp_path), "run.id=one", "trainer.max_steps=2"]
    assert run_command(monkeypatch, "train", *overrides) == 0
    capfd.readouterr()
    files = [f"audit.contrast.{name}={planted / name}.csv" for name in ("original", "edited")]
    assert run_command(monkeypatch, "audit", "run=one", "audit=contrast", *files) == 2
    assert "TokenClassificationTask does not predict one label per row, which the audit " in capfd.readouterr().err
