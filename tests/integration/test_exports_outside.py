"""Tests that a transformers pipeline predicts as framework.predict does, or that transformers rejects the export."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from framework.config.command_schema import ExportConfig
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import CheckpointError
from framework.inference.export_comparison import compare_with_transformers
from framework.runs.trained import open_trained
from tests.support.commands.in_process import TEXTS, train_vocabulary
from tests.support.models import peers

SENTENCE = ["John", "Smith", "went", "to", "London"]
COMMON = [
    "model=from_weights",
    "init_from=published",
    "logger=none",
    "precision=fp32",
    "run.id=mine",
    "optimizer.lr=0.01",
    "trainer.max_steps=8",
    "trainer.global_batch_size=8",
    "data.validation_fraction=0.2",
    "task.max_length=16",
]


def publish(family: str) -> None:
    """Writes a small model of a family, with a vocabulary of its kind, in the published format."""
    folder = Path("published")
    if family == "bert":
        train_vocabulary(TEXTS, 80, folder)
    else:
        training = ByteLevelBpeTraining(400)
        training.train(WordCounts(training.count([*TEXTS, " ".join(SENTENCE)])), folder)
    vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
    config = peers.CONFIGS[family].to_dict() | {"vocab_size": vocab_size, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = {"bert": transformers.BertModel, "roberta": transformers.RobertaModel}[family]
    model(model.config_class(**config)).save_pretrained(folder)


def predictions(run, capfd, *arguments) -> list[dict]:
    capfd.readouterr()
    assert run("predict", "run=mine", "precision=fp32", *arguments) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def train_and_export(run, capfd, *arguments) -> str:
    """Trains and exports, and returns the export's output."""
    assert run("train", *COMMON, *arguments) == 0
    capfd.readouterr()
    assert run("export", "run=mine") == 0
    return capfd.readouterr().out


def test_pooling_that_transformers_lacks(run, tmp_path, capfd):
    publish("bert")
    task = ["task=sequence_classification", "data=table", "data.train=rows.csv", "task.pooling=mean"]
    assert "ids and outputs agree with transformers" in train_and_export(run, capfd, *task)
    folder = str(tmp_path / "runs/mine/export")
    with pytest.raises(ValueError, match="contains custom code"):
        transformers.pipeline("text-classification", folder)
    pipe = transformers.pipeline("text-classification", folder, trust_remote_code=True)
    texts = ["a good film of 1990", "good " * 100]
    expected = predictions(run, capfd, f"text=[{','.join(texts)}]")
    for text, each in zip(texts, expected, strict=True):
        (found,) = pipe(text, truncation=True)
        assert found["label"] == each["label"]
        assert found["score"] == pytest.approx(each["probability"], abs=1e-5)
    check_that_a_difference_is_reported(tmp_path / "runs/mine/export")


def check_that_a_difference_is_reported(folder) -> None:
    trained = open_trained(ExportConfig(run="mine", runs="runs"))
    assert compare_with_transformers(folder, trained).startswith("ids and outputs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pooling": "cls"}))
    with pytest.raises(CheckpointError, match="outputs of ClozeForSequenceClassification and Cloze differ by"):
        compare_with_transformers(folder, trained)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    with pytest.raises(CheckpointError, match=r"its tokenizer returns .* in transformers and .* in Cloze"):
        compare_with_transformers(folder, trained)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="cannot load it"):
        compare_with_transformers(folder, trained)


def test_pairs_of_a_byte_level_vocabulary(run, tmp_path, capfd):
    publish("roberta")
    pairs = [f"{text},{other},{text == other}" for text in TEXTS[:8] for other in TEXTS[:4]]
    (tmp_path / "pairs.csv").write_text("\n".join(["text,pair,label", *pairs]))
    task = ["task=sequence_classification", "data=table", "data.train=pairs.csv", "data.pair_column=pair"]
    task += ["task.max_length=60"]
    assert "ids and outputs agree with transformers" in train_and_export(run, capfd, *task)
    record = json.loads((tmp_path / "runs/mine/task.json").read_text())
    assert record["pair_separators"] == 2
    (tmp_path / "new.csv").write_text(f"text,pair\n{TEXTS[0]},{TEXTS[9]}\n")
    (expected,) = predictions(run, capfd, "input=new.csv")
    pipe = transformers.pipeline("text-classification", str(tmp_path / "runs/mine/export"))
    found = pipe({"text": TEXTS[0], "text_pair": TEXTS[9]})
    assert (found["label"], found["score"]) == (expected["label"], pytest.approx(expected["probability"], abs=1e-5))
    # An older run that joins pairs by one separator keeps doing so, and so does its export.
    (tmp_path / "runs/mine/task.json").write_text(
        json.dumps({key: value for key, value in record.items() if key != "pair_separators"})
    )
    (before,) = predictions(run, capfd, "input=new.csv")
    assert before["probability"] != expected["probability"]
    assert run("export", "run=mine", "output=old") == 0
    old = transformers.pipeline("text-classification", str(tmp_path / "old"))
    assert len(old.tokenizer("a", "a")["input_ids"]) == 5
    found = old({"text": TEXTS[0], "text_pair": TEXTS[9]})
    assert found["score"] == pytest.approx(before["probability"], abs=1e-5)


def test_entities_of_a_byte_level_vocabulary(run, tmp_path, capfd):
    publish("roberta")
    tags = {"John": "B-PER", "Smith": "I-PER", "London": "B-LOC"}
    sentences = [[SENTENCE[(first + step) % 5] for first in range(5)] for step in (0, 2, 3, 4)] * 5
    lines = [f"{word} {tags.get(word, 'O')}" if word else "" for words in sentences for word in [*words, ""]]
    (tmp_path / "train.conll").write_text("\n".join(lines))
    task = ["task=token_classification", "data=tagged", "data.train=train.conll", "task.stride=8"]
    task += ["trainer.max_steps=25"]
    assert "ids and outputs agree with transformers" in train_and_export(run, capfd, *task)
    folder = str(tmp_path / "runs/mine/export")
    peer = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    as_words = tokenizer(SENTENCE, is_split_into_words=True)["input_ids"]
    inputs = tokenizer(" ".join(SENTENCE), return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0].tolist()
    assert inputs["input_ids"][0].tolist() == as_words
    with torch.no_grad():
        probabilities = peer(**inputs).logits[0].softmax(-1)
    (expected,) = predictions(run, capfd, f"text={' '.join(SENTENCE)}")
    assert expected["entities"]
    for entity in expected["entities"]:
        # The offsets of a token exclude its space.
        index = next(index for index, (start, stop) in enumerate(offsets) if start == entity["start"] and stop > start)
        label = peer.config.id2label[int(probabilities[index].argmax())]
        assert label.endswith(entity["label"])
