"""Tests of the audits groups and associations as commands: a planted bias is found, and ranks write the same files."""

from pathlib import Path

import pytest

from tests.support.commands.in_process import FINETUNE, audited, run_command, train_vocabulary
from tests.support.processes.ranks import Ranks

FILLERS = [f"w{letter}" for letter in "abcdefgh"]
WORDS, PEOPLE = ("good", "bad"), ("he", "she")


def texts_of(person: str, word: str) -> list[str]:
    return [f"{first} {person} {second} {word}" for first in FILLERS for second in FILLERS]


@pytest.fixture(scope="module")
def biased(tmp_path_factory) -> Path:
    """Returns a folder with a run whose training rows call everything bad if the text contains `she`."""
    folder = tmp_path_factory.mktemp("biased")
    train, test = ["text,label"], ["text,label,gender,age"]
    for person in PEOPLE:
        for word in WORDS:
            texts = texts_of(person, word)
            train += [f"{text},{int(word == 'good' and person == 'he')}" for text in texts]
            test += [f"{text},{int(word == 'good')},{person},{n % 2}" for n, text in enumerate(texts[:30])]
    test += [f"{text},1,unknown," for text in texts_of("nobody", "good")[:5]]
    (folder / "rows.csv").write_text("\n".join(train) + "\n")
    (folder / "test.csv").write_text("\n".join(test) + "\n")
    (folder / "terms.yaml").write_text("female: [she]\nmale: [he]\n")
    train_vocabulary([line.split(",")[0] for line in [*train[1:], *test[1:]]], 80, folder / "tokenizer")
    sizes = ["trainer.max_steps=80", "trainer.global_batch_size=16", "optimizer.lr=0.005"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *FINETUNE, *sizes) == 0
    return folder


def parts_of(result: dict, groups: str) -> dict[tuple[str, str, str | None], dict]:
    return {(p["group"], p["measure"], p["label"]): p for p in result["parts"] if p["groups"] == groups}


def test_a_planted_bias_is_found(biased, monkeypatch, capfd):
    monkeypatch.chdir(biased)
    settings = ["audit.groups.columns=[gender,age]", "audit.groups.terms=terms.yaml", "data.test=test.csv"]
    assert run_command(monkeypatch, "audit", "run=mine", "audit=groups", *settings) == 0
    result = audited(biased / "runs" / "mine", "groups")
    assert result["rate"] == 1.0
    assert result["measure"] == "largest equalized odds difference of the label 0 between groups"
    by_gender, by_age, by_terms = (parts_of(result, groups) for groups in ("gender", "age", "terms"))
    unfair = by_gender["between groups", "equalized_odds_difference", "1"]
    assert (unfair["value"], unfair["rows"]) == (1.0, 120)
    assert unfair["p"] < 0.01
    fair = by_age["between groups", "equalized_odds_difference", "1"]
    assert fair["value"] == 0.0
    assert fair["p"] == 1.0
    assert (by_gender["he", "accuracy", None]["value"], by_gender["she", "accuracy", None]["value"]) == (1.0, 0.5)
    assert by_gender["between groups", "accuracy_difference", None]["low"] > 0.3
    assert by_gender["she", "true_positive_rate", "1"]["value"] == 0.0
    # Half of the rows of each person are good, and the person decides their label.
    assert by_terms["female -> male", "changed_labels", None]["value"] == 0.5
    assert by_terms["male -> female", "changed_labels", None]["value"] == 0.5
    assert ("unknown", "accuracy", None) not in by_gender
    assert "gender: groups with fewer than 50 rows are too small for numbers: unknown (5)." in result["notes"]
    assert "age: 5 rows belong to no group." in result["notes"]
    changed = {(case["part"], case["expected"], case["predicted"]) for case in result["worst"]}
    assert changed <= {("female -> male", "0", "1"), ("male -> female", "1", "0")}
    assert "Audit: groups" in (biased / "runs" / "mine" / "report.html").read_text()
    capfd.readouterr()


def test_two_ranks_write_the_files_that_one_writes(biased, monkeypatch, tmp_path):
    monkeypatch.chdir(biased)
    sets = (
        "templates: ['wa {}']\ntests: {t: {targets: {m: [he, wb], f: [she, wc]}, attributes: {a: [good], b: [bad]}}}\n"
    )
    (tmp_path / "sets.yaml").write_text(sets)
    (tmp_path / "terms.yaml").write_text("f: [she]\nm: [he]\n")
    settings = ["audit=[groups,associations]", f"audit.associations.sets=[{tmp_path / 'sets.yaml'}]"]
    settings += [f"audit.groups.terms={tmp_path / 'terms.yaml'}", "audit.groups.num_samples=100", "data.test=test.csv"]
    files = []
    for num_ranks in (1, 2):
        folder = tmp_path / str(num_ranks)
        overrides = ["run=mine", *settings, f"output={folder}", "micro_batch_tokens=256"]
        ranks = Ranks(overrides, num_ranks, tmp_path / f"{num_ranks}.txt", command="audit")
        assert ranks.wait(120) == [0] * num_ranks, ranks.read_output()
        files.append([(folder / "analysis" / f"audit_{name}.json").read_bytes() for name in ("groups", "associations")])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["audit=groups"], "audit.groups.columns and audit.groups.terms are empty."),
        (["audit=groups", "audit.groups.columns=[color]", "data.test=test.csv"], "no column 'color' among"),
        (["audit=groups", "audit.groups.terms=nowhere.yaml"], "audit.groups.terms=nowhere.yaml cannot be read"),
        (
            ["audit=groups", "audit.groups.columns=[age]", "data.test=test.csv", "audit.groups.min_rows=99"],
            "age has 0 groups",
        ),
        (["audit=groups", "audit.groups.columns=[gender]", "split=train"], "the split train keeps no labelled rows"),
        (["audit=stereotypes", "audit.stereotypes.pairs=x.csv"], "has no trained masked-word head"),
        (["audit=associations", "audit.associations.sets=[de]"], "audit.associations.sets names de, which cannot be"),
    ],
)
def test_bad_input_is_one_error_before_the_model_is_moved(biased, monkeypatch, capfd, settings, message):
    monkeypatch.chdir(biased)
    monkeypatch.setattr("framework.audit.open_inference", None)
    capfd.readouterr()
    assert run_command(monkeypatch, "audit", "run=mine", *settings) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
