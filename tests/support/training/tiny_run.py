"""A run that takes seconds: a token store of invented sentences, and the arguments of the command."""

import atexit
import functools
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 24


def make_store(folder: Path) -> Path:
    """Returns a token store of invented sentences in a new folder. Each process prepares it once and then copies it."""
    shutil.copytree(_prepared(), folder)
    return folder / "store"


@functools.cache
def _prepared() -> Path:
    """Prepares the store by the command, in a folder that is removed when this process ends."""
    private = Path(tempfile.mkdtemp(prefix="cloze-tiny-run-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    folder = private / "text"  # with the usual permissions, which the copies take over
    folder.mkdir()
    draw = random.Random(0)
    words = [first + last for first in ("ba", "ke", "lo", "mi", "nu") for last in ("ra", "se", "ti", "vo", "zu", "")]
    for index in range(40):
        sentences = [" ".join(draw.choices(words, k=draw.randint(3, 14))) + "." for _ in range(draw.randint(3, 12))]
        (folder / f"{index}.txt").write_text(" ".join(sentences), encoding="utf-8")
    command = [sys.executable, "-m", "framework.prepare", "corpus=text", f"corpus.sources.text.files={folder}/*.txt"]
    subprocess.run(
        [*command, f"store={folder / 'store'}", "vocabulary.vocab_size=120"], check=True, capture_output=True
    )
    return folder


def arguments(store: Path, runs: Path, run_id: str, strategy: str, *overrides: str) -> list[str]:
    """Returns arguments of `framework.train`: 24 steps, a row per step, validation every 5, a checkpoint every 3."""
    return [
        *("experiment=pretrain_demo", "logger=none", "precision=fp32", f"strategy={strategy}"),
        *(f"data.store={store}", "data.validation_fraction=0.2", f"tokenizer.path={store / 'tokenizer'}"),
        *(f"run.dir={runs}", f"run.id={run_id}", "model.vocab_size=null", "model.hidden_size=32"),
        *("model.num_layers=2", "model.num_heads=4", "model.intermediate_size=48", "model.hidden_dropout=0.1"),
        *("task.sequence_length=32", f"trainer.max_steps={STEPS}", "trainer.global_batch_size=9"),
        *("trainer.micro_batch_tokens=64", "trainer.log_every_n_steps=1", "trainer.val_every_n_steps=5"),
        *("trainer.checkpoint_every_n_steps=3", *overrides),
    ]


def rows(run: Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics.jsonl, without an incomplete last line."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1] if line]


def summary(run: Path) -> dict[str, object]:
    """Returns the content of a run's summary.json."""
    value: dict[str, object] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return value
