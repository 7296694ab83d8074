"""Runs the command lines of the commands in this process and in a folder of tiny data."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from framework.config.command import start
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import FrameworkError

COMMANDS = ("train", "plan", "prepare", "evaluate", "predict", "explain", "audit", "mine", "export")
TEXTS = [f"a {word} film of {year}" for year in range(1990, 1998) for word in ("good", "fine", "bad", "poor")]
LABELS = ["1", "1", "0", "0"] * 8
TINY = [
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.intermediate_size=16",
    "model.vocab_size=null",
]
FINETUNE = [
    "experiment=finetune_demo",
    "data=table",
    "data.train=rows.csv",
    "data.validation_fraction=0.2",
    "tokenizer.path=tokenizer",
    "logger=none",
    "precision=fp32",
    "run.id=mine",
    "trainer.max_steps=2",
    "trainer.global_batch_size=4",
    *TINY,
]


@dataclass
class Outcome:
    """Exit code and output of a command, and the files that exist after it."""

    code: int
    out: str
    err: str
    files: set[str] = field(default_factory=set)


def run_command(monkeypatch: pytest.MonkeyPatch, name: str, *overrides: str) -> int:
    """Runs a command as from the command line; returns its exit code."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [name, *overrides])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    try:
        start(f"framework.{name}")
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def write_rows(path: Path, texts: list[str], labels: list[str], columns: tuple[str, str] = ("text", "label")) -> None:
    lines = [",".join(columns), *(f"{text},{label}" for text, label in zip(texts, labels, strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(TEXTS, 80, folder)
    return folder


def train_vocabulary(texts: list[str], vocab_size: int, folder: Path) -> None:
    training = WordPieceTraining(vocab_size)
    training.train(WordCounts(training.count(texts)), folder)


@pytest.fixture
def here(tmp_path, monkeypatch, tokenizer_folder) -> Path:
    """Returns the working folder, which contains only rows.csv and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").symlink_to(tokenizer_folder)
    write_rows(tmp_path / "rows.csv", TEXTS, LABELS)
    return tmp_path


@pytest.fixture
def call(here, monkeypatch, capfd) -> Callable[..., Outcome]:
    """Returns a function that runs a command as from the command line, in the folder of `here`."""

    def run(name: str, *overrides: str) -> Outcome:
        code = run_command(monkeypatch, name, *overrides)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err, files_below(here))

    return run


def audited(folder: Path, name: str) -> dict[str, Any]:
    """Returns the result of an audit as `framework.audit` wrote it."""
    result: dict[str, Any] = json.loads((folder / "analysis" / f"audit_{name}.json").read_text())
    return result


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_clear_error(outcome: Outcome, message: str) -> None:
    assert outcome.code == FrameworkError.exit_code
    assert re.match(r"(Config|Data|Checkpoint|Distributed|Framework)Error( \(rank 0\))?: ", outcome.err)
    assert message in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert outcome.err.count("\n") == 1, outcome.err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Returns a function that runs a command in a folder with rows and a tokenizer, and returns its exit code."""
    monkeypatch.chdir(tmp_path)
    train_vocabulary(TEXTS, 80, tmp_path / "tokenizer")
    write_rows(tmp_path / "rows.csv", TEXTS, LABELS)
    return lambda name, *overrides: run_command(monkeypatch, name, *overrides)
