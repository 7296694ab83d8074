"""A tiny published checkpoint continues its pre-training on other text, with its own vocabulary and with new words."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.support.commands.in_process import run_command

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["reagent", "titration", "buffer", "enzyme"]
PREPARE = ["corpus=text", "corpus.sources.text.files=texts/*.txt", "num_workers=0"]
TRAIN = [
    *("init_from=checkpoint", "task.sequence_length=32", "logger=none", "precision=fp32", "trainer.max_steps=20"),
    *("trainer.global_batch_size=4", "trainer.val_every_n_steps=20", "trainer.checkpoint_every_n_steps=10"),
    *("optimizer.lr=1e-2", "data.validation_fraction=0.2", "trainer.log_every_n_steps=1"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Returns a folder with a published checkpoint, whose vocabulary has single letters only, and texts."""
    folder = tmp_path_factory.mktemp("continued")
    torch.manual_seed(0)
    vocabulary = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder / "checkpoint")
    (folder / "checkpoint" / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "texts").mkdir()
    for number in range(30):
        words = [f"{WORDS[(number + index) % 4]} {LETTERS[(number * index) % 26]}" for index in range(6)]
        (folder / "texts" / f"{number}.txt").write_text(" ".join(words) + f" {LETTERS[number % 26] * 3}.")
    return folder


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_a_checkpoint_continues_with_its_own_vocabulary(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    given = ["vocabulary=given", "vocabulary.path=checkpoint", "store=own"]
    assert run_command(monkeypatch, "prepare", *PREPARE, *given) == 0
    own = ["experiment=continue_pretraining", "data.store=own", "run.id=own"]
    assert run_command(monkeypatch, "train", *own, *TRAIN) == 0, capfd.readouterr().err
    assert "head reused: mlm.dense, mlm.norm, mlm.decoder" in capfd.readouterr().out
    row = losses(place / "runs" / "own")
    assert len(row) == 20 and sum(row[10:]) < sum(row[:10])


def test_new_words_start_from_their_pieces_and_are_trained_exported_and_resumed(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    extended = ["vocabulary=extended", "vocabulary.path=checkpoint", "vocabulary.min_count=5", "store=extended"]
    assert run_command(monkeypatch, "prepare", *PREPARE, *extended) == 0
    own = ["experiment=extend_vocabulary", "data.store=extended", "run.id=extended", *TRAIN]
    capfd.readouterr()
    assert run_command(monkeypatch, "train", *own, "extend_vocabulary=false", "run.id=refused") == 2
    assert "set extend_vocabulary=true" in capfd.readouterr().err
    assert run_command(monkeypatch, "train", *own) == 0, capfd.readouterr().err
    assert "new tokens: 4, their rows start as the mean of the rows of their old pieces" in capfd.readouterr().out
    row = losses(place / "runs" / "extended")
    assert len(row) == 20 and sum(row[10:]) < sum(row[:10])

    # A run of the last 10 steps alone, from the checkpoint at step 10, continues bit for bit.
    resumed = [*own, "run.id=resumed", "run.resume=runs/extended/checkpoints/step_00000010"]
    assert run_command(monkeypatch, "train", *resumed) == 0, capfd.readouterr().err
    assert losses(place / "runs" / "resumed") == row[10:]

    assert run_command(monkeypatch, "export", "run=extended", "output=export") == 0
    peer = transformers.BertForMaskedLM.from_pretrained(place / "export").eval()
    words = transformers.AutoTokenizer.from_pretrained(place / "export")
    ids = words("enzyme", add_special_tokens=False)["input_ids"]
    before = load_file(place / "checkpoint" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    after = peer.get_input_embeddings().weight.detach()
    pieces = [5 + LETTERS.index("e"), *(31 + LETTERS.index(letter) for letter in "nzyme")]
    assert len(ids) == 1 and len(after) == len(before) + 4 == len(peer.cls.predictions.bias)
    assert not torch.allclose(after[ids[0]], before[pieces].mean(0), atol=1e-3)
