"""Tests of augmentation: equal for any number of processes and after a stop; invalid settings are rejected."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertForMaskedLM, BertModel

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from tests.support.processes.ranks import Ranks
from tests.support.tasks.commands import FINE_TUNED, call, prepare
from tests.support.tasks.examples import sequence_classification

STEPS = 6
PAIRS = "augmentation.pairs=pairs.yaml"
SHAPE = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
COMMON = [
    *("data=table", "data.validation_fraction=0.2", "data.train=rows.csv", "tokenizer=folder"),
    *("tokenizer.path=tokenizer", "task.max_length=32", "model=bert_tiny", "model.vocab_size=null"),
    *(f"model.{name}={value}" for name, value in SHAPE.items()),
    *("logger=none", "precision=fp32", "run.dir=runs", "optimizer.lr=1e-2", "schedule=constant"),
    *("trainer.global_batch_size=16", "trainer.micro_batch_tokens=64", "trainer.log_every_n_steps=1"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sequence_classification.write(tmp_path)
    training = WordPieceTraining(200)
    training.train(WordCounts(training.count(sequence_classification.TEXTS)), tmp_path / "tokenizer")
    return tmp_path


def train(folder: Path, run_id: str, *overrides: str, num_ranks: int = 1, steps: int = STEPS) -> tuple[int, str]:
    arguments = [*COMMON, "task=sequence_classification", f"run.id={run_id}", f"trainer.max_steps={steps}"]
    arguments.append(f"strategy={'single' if num_ranks == 1 else 'ddp'}")
    ranks = Ranks([*arguments, *overrides], num_ranks, folder / f"{run_id}.txt", folder=folder)
    codes = ranks.wait(240.0)
    return max(abs(code or 0) for code in codes), ranks.read_output()


def succeed(folder: Path, run_id: str, *overrides: str, num_ranks: int = 1, steps: int = STEPS) -> list[dict]:
    code, output = train(folder, run_id, *overrides, num_ranks=num_ranks, steps=steps)
    assert code == 0, output
    lines = (folder / "runs" / run_id / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_pairs(folder: Path) -> None:
    (folder / "pairs.yaml").write_text("pairs: [[film, nobody forgets], [big, small]]\n", encoding="utf-8")


def published(folder: Path, name: str, with_head: bool) -> str:
    """Saves weights by transformers, with or without a head for masked words, and returns the override."""
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config) if with_head else BertModel(config)
    model.save_pretrained(folder / name)
    return f"init_from=./{name}"


# The others share their code: swap with delete, which changes ids, and typos with counterfactual, which rewrites texts.
@pytest.mark.parametrize("augmentation", ["delete", "replace", "counterfactual"])
def test_one_and_two_processes_and_a_run_that_was_cut(folder: Path, augmentation: str):
    setting = PAIRS if augmentation == "counterfactual" else "augmentation.rate=0.3"
    overrides = [f"augmentation={augmentation}", setting, published(folder, "weights", with_head=True)]
    write_pairs(folder)
    reference = succeed(folder, "whole", *overrides)
    for ours, theirs in zip(succeed(folder, "two", *overrides, num_ranks=2), reference, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    succeed(folder, "cut", *overrides, steps=4)
    cut = succeed(folder, "cut", *overrides)
    assert [row["train/loss"] for row in cut] == [row["train/loss"] for row in reference]
    unaugmented = succeed(folder, "plain", overrides[-1])
    # A single loss may be equal after rounding.
    assert [row["train/loss"] for row in unaugmented] != [row["train/loss"] for row in reference]
    if augmentation == "replace":
        one, two = (np.load(folder / "runs" / name / "augmentation.npy") for name in ("whole", "two"))
        assert (one == two).all() and len(one) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["augmentation=replace"],
            "`init_from` is null. Set `init_from` to a pre-trained model, or use augmentation=delete.",
        ),
        (["augmentation=delete", "augmentation.rate=1.5"], "augmentation.rate is 1.5. It must be above 0 and below 1"),
        (["augmentation=delete", "augmentation.share=0.1"], "unknown config key `augmentation.share`"),
        (["augmentation=counterfactual", PAIRS], "augmentation.pairs is pairs.yaml, which cannot be read"),
        (
            ["augmentation=counterfactual", "augmentation.pairs=gender_zh.yaml"],
            "none of the 46 training texts contains a word of its pairs. Nothing would be swapped.",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_folder_is_made(folder: Path, overrides: list[str], message: str):
    code, output = train(folder, "refused", *overrides)
    assert code == 2 and message in " ".join(output.split())
    assert not (folder / "runs").exists()


def test_weights_without_a_head_for_masked_words_are_refused(folder: Path):
    code, output = train(folder, "refused", "augmentation=replace", published(folder, "bare", with_head=False))
    assert code == 2 and "samples words from a head for masked words, but init_from=./bare has none" in output
    assert not (folder / "runs").exists()


def test_a_changed_file_of_pairs_is_refused_on_resume(folder: Path):
    write_pairs(folder)
    overrides = ["augmentation=counterfactual", PAIRS]
    succeed(folder, "mine", *overrides, steps=1)
    (folder / "pairs.yaml").write_text("pairs: [[film, nobody]]\n", encoding="utf-8")
    code, output = train(folder, "mine", *overrides)
    assert code == 2 and "data" in output, output


def test_texts_of_several_choices_are_rewritten(tmp_path: Path):
    write_pairs(tmp_path)
    overrides = [*prepare("multiple_choice", tmp_path), "augmentation=counterfactual", PAIRS]
    code, output = call(tmp_path, "train", *overrides, "trainer.max_steps=2", "run.id=mine")
    assert code == 0, output


@pytest.mark.parametrize("name", FINE_TUNED)
def test_each_task_allows_it_or_refuses_it(tmp_path: Path, name: str):
    overrides = [*prepare(name, tmp_path), "augmentation=delete", "trainer.max_steps=2", "run.id=mine"]
    code, output = call(tmp_path, "train", *overrides)
    if name in ("sequence_classification", "multiple_choice", "reranking"):
        assert code == 0, output
    else:
        assert code == 2 and re.search(
            r"augmentation=Delete changes texts, but the targets of \w+Task would no", output
        )
        assert not (tmp_path / "runs").exists()
