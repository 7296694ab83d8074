"""A word that agrees with the label by chance: counterfactual augmentation and Group DRO reduce what it decides."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from tests.support.tasks.commands import call, jsonl, rows, succeed

ENDS = ("ald", "end", "ist", "orm")
GOOD, BAD = [first + end for first in "bcdfg" for end in ENDS], [first + end for first in "klmnp" for end in ENDS]
FILLERS = ("the", "film", "was", "here", "now", "and", "then")
COMMON = [
    *("task=sequence_classification", "data=table", "data.train=train.csv", "data.validation=validation.csv"),
    *("tokenizer=folder", "tokenizer.path=tokenizer", "task.max_length=16", "task.pooling=mean", "model=bert_tiny"),
    *("model.vocab_size=null", "model.hidden_size=32", "model.num_layers=1", "model.num_heads=2"),
    *("model.intermediate_size=48", "model.max_position_embeddings=32", "logger=none", "precision=fp32"),
    *("strategy=single", "run.dir=runs", "optimizer.lr=4e-3", "schedule=linear", "trainer.max_steps=150"),
    *("trainer.global_batch_size=32", "trainer.micro_batch_tokens=1024", "trainer.log_every_n_steps=150"),
    "trainer.report_examples=null",
]


def draw_rows(size: int, agreement: float) -> list[tuple[str, str, str]]:
    """Returns text, label and group: "he" or "she" agrees with the label in a share of rows, another word in 90 %."""
    draw = random.Random(size)
    drawn = []
    for _ in range(size):
        is_good = draw.random() < 0.5
        pronoun = "he" if is_good == (draw.random() < agreement) else "she"
        words = [*draw.sample(FILLERS, 3), draw.choice(GOOD if is_good == (draw.random() < 0.9) else BAD)]
        draw.shuffle(words)
        drawn.append((" ".join([pronoun, *words]), "good" if is_good else "bad", pronoun))
    return drawn


def write(file: Path, drawn: Sequence[tuple[str, str, str]]) -> None:
    file.write_text("text,label,sex\n" + "".join(",".join(row) + "\n" for row in drawn), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder in which the run `plain` was trained."""
    folder = tmp_path_factory.mktemp("bias")
    write(folder / "train.csv", draw_rows(1500, 0.95))
    write(folder / "validation.csv", draw_rows(400, 0.5))
    training = WordPieceTraining(200)
    words = [*GOOD, *BAD, *FILLERS, "he", "she"]
    training.train(WordCounts(training.count(words)), folder / "tokenizer")
    succeed(folder, "train", *COMMON, "data.group_column=[sex,label]", "run.id=plain")
    return folder


def last(folder: Path, run: str) -> dict[str, float]:
    return rows(folder, run)[-1]


def pronoun_gap(folder: Path, run: str) -> float:
    """Returns the mean difference of P(good) between texts with "he" and with "she"."""
    texts = [text.partition(" ")[2] for text, _, _ in draw_rows(200, 0.5)]
    probabilities = []
    for pronoun in ("he", "she"):
        lines = [json.dumps({"text": f"{pronoun} {text}"}) + "\n" for text in texts]
        (folder / "input.jsonl").write_text("".join(lines), encoding="utf-8")
        succeed(folder, "predict", f"run={run}", "input=input.jsonl", f"output={run}_{pronoun}.jsonl")
        probabilities.append([row["probabilities"]["good"] for row in jsonl(folder / f"{run}_{pronoun}.jsonl")])
    return sum(he - she for he, she in zip(*probabilities, strict=True)) / len(texts)


def test_counterfactual_augmentation_halves_the_bias_and_keeps_the_accuracy(folder: Path):
    overrides = ["augmentation=counterfactual", "data.group_column=[sex,label]"]
    succeed(folder, "train", *COMMON, *overrides, "run.id=counterfactual")
    before, after = (pronoun_gap(folder, run) for run in ("plain", "counterfactual"))
    assert before > 0.4 and abs(after) < before / 4
    assert last(folder, "counterfactual")["val/accuracy"] > last(folder, "plain")["val/accuracy"] - 0.01


def test_a_balanced_epoch_raises_the_accuracy_of_the_worst_group(folder: Path):
    succeed(folder, "train", *COMMON, "data.group_column=[sex,label]", "data.balance=group", "run.id=balanced")
    plain, balanced = last(folder, "plain"), last(folder, "balanced")
    assert balanced["val/worst_group_accuracy"] > plain["val/worst_group_accuracy"] + 0.3
    assert balanced["val/accuracy"] > plain["val/accuracy"]


def test_group_dro_raises_the_accuracy_of_the_worst_group(folder: Path):
    overrides = ["task.group_loss={step_size: 0.1}", "data.group_column=[sex,label]"]
    succeed(folder, "train", *COMMON, *overrides, "run.id=worst")
    plain, worst = last(folder, "plain"), last(folder, "worst")
    assert worst["val/worst_group_accuracy"] > plain["val/worst_group_accuracy"] + 0.3
    assert worst["val/accuracy"] > plain["val/accuracy"]
    weights = {name: value for name, value in worst.items() if name.endswith("_weight")}
    assert len(weights) == 4 and sum(weights.values()) == pytest.approx(1.0)
    # Data without groups are evaluated by the plain loss.
    succeed(folder, "evaluate", "run=worst", "split=validation", "+data.group_column=[]", "output=all.json")
    metrics = json.loads((folder / "all.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["accuracy"] == pytest.approx(worst["val/accuracy"], abs=0.01)
    assert "worst_group_accuracy" not in metrics


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.group_column=gender"], "no column 'gender' among"),
        (["data.balance=label"], "`data.balance` is 'label'. It must be one of group or null."),
        (["task.group_loss=best"], "`task.group_loss` is 'best'. It must be one of worst or a group of keys or null."),
        (["regularization=r_drop"], "follow their losses, but regularization=RDrop adds terms of its own"),
    ],
)
def test_groups_that_cannot_be_used_are_refused_before_a_run_folder_is_made(
    folder: Path, overrides: list[str], message: str
):
    given = ["data.group_column=sex", "task.group_loss=worst", *overrides]
    code, output = call(folder, "train", *COMMON, *given, "run.id=refused")
    assert code == 2 and message in " ".join(output.split()), output
    assert not (folder / "runs" / "refused").exists()
