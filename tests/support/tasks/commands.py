"""Runs the example of a task (tests/support/tasks/examples/NAME.py) by the commands, in processes like torchrun's."""

import importlib
import json
from pathlib import Path
from types import ModuleType

from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from tests.support.processes.ranks import Ranks

TASKS = sorted(file.parent.name for file in Path(__file__).parents[3].glob("framework/tasks/*/task.py"))
# Pre-training reads token stores and predicts no rows. tests/faults and tests/integration run it.
FINE_TUNED = [name for name in TASKS if name != "pretraining"]
STEPS = 24
COMMON = [
    *(
        "logger=none",
        "precision=fp32",
        "strategy=single",
        "tokenizer=folder",
        "tokenizer.path=tokenizer",
        "run.dir=runs",
    ),
    *("model=bert_tiny", "model.vocab_size=null", "model.hidden_size=32", "model.num_layers=2", "model.num_heads=2"),
    *("model.intermediate_size=48", "model.max_position_embeddings=64", "model.hidden_dropout=0.1"),
    *(f"trainer.max_steps={STEPS}", "trainer.global_batch_size=16", "trainer.micro_batch_tokens=4096"),
    *("trainer.log_every_n_steps=1", "trainer.val_every_n_steps=8", "optimizer.lr=1e-2", "schedule=constant"),
]
WAIT_SECONDS = 240.0


def call(folder: Path, command: str, *arguments: str, num_ranks: int = 1) -> tuple[int | None, str]:
    """Runs a command in a folder, and returns the first exit code that is not 0, and the output."""
    output = folder / f"{command}.txt"
    output.unlink(missing_ok=True)
    ranks = Ranks(list(arguments), num_ranks, output, command=command, folder=folder)
    codes = ranks.wait(WAIT_SECONDS)
    return next((code for code in codes if code), 0), ranks.read_output()


def succeed(folder: Path, command: str, *arguments: str, num_ranks: int = 1) -> str:
    code, output = call(folder, command, *arguments, num_ranks=num_ranks)
    assert code == 0, output
    return output


def example(name: str) -> ModuleType:
    return importlib.import_module(f"tests.support.tasks.examples.{name}")


def prepare(name: str, folder: Path) -> list[str]:
    """Writes data and vocabulary, and returns the overrides of training."""
    task = example(name)
    training = WordPieceTraining(200)
    training.train(WordCounts(training.count(task.TEXTS)), folder / "tokenizer")
    return [*COMMON, *task.OVERRIDES, *task.write(folder)]


def rows(folder: Path, run_id: str) -> list[dict[str, float]]:
    file = folder / "runs" / run_id / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
