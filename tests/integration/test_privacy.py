"""Private runs: equal for any strategy, bit for bit after kill -9, and without facts about rows in what they write."""

import functools
import json
import os
import secrets
import signal
from pathlib import Path

import pytest
import yaml

from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.modules.passes.private import PrivateSteps
from framework.status import status_table
from framework.tracking.run_status import read_status
from tests.support.processes.ranks import Ranks
from tests.support.tasks.examples import sequence_classification

KEY = bytes(range(32))
STEPS = 6
SHAPE = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
COMMON = [
    *("task=sequence_classification", "data=table", "data.validation_fraction=0.2", "data.train=rows.csv"),
    *("data.labels=[bad,good]", "tokenizer=folder", "tokenizer.path=tokenizer", "task.max_length=32"),
    *("model=bert_tiny", "model.vocab_size=null", *(f"model.{name}={value}" for name, value in SHAPE.items())),
    *("privacy=dp_sgd", "privacy.epsilon=20", "logger=none", "precision=fp32", "run.dir=runs", "optimizer.lr=1e-2"),
    *("schedule=constant", "trainer.global_batch_size=12", "trainer.micro_batch_tokens=64"),
    *("trainer.log_every_n_steps=1", "trainer.checkpoint_every_n_steps=2", f"trainer.max_steps={STEPS}"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sequence_classification.write(tmp_path)
    training = WordPieceTraining(200)
    training.train(WordCounts(training.count(sequence_classification.TEXTS)), tmp_path / "tokenizer")
    return tmp_path


def fix_key() -> None:
    secrets.token_bytes = lambda count: KEY[:count]


def die_in_step_5() -> None:
    fix_key()
    run = PrivateSteps.run

    @functools.wraps(run)
    def dying(self, passes, step, counts):
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, passes, step, counts)

    PrivateSteps.run = dying  # type: ignore[method-assign]


def train(folder: Path, run_id: str, *overrides: str, num_ranks: int = 1, prepare=fix_key) -> tuple[int, str]:
    output = folder / f"{run_id}.txt"
    output.unlink(missing_ok=True)
    ranks = Ranks([*COMMON, f"run.id={run_id}", *overrides], num_ranks, output, prepare, folder=folder)
    codes = ranks.wait(240.0)
    return max(abs(code or 0) for code in codes), ranks.read_output()


def succeed(folder: Path, run_id: str, *overrides: str, num_ranks: int = 1) -> str:
    code, output = train(folder, run_id, *overrides, num_ranks=num_ranks)
    assert code == 0, output
    return (folder / "runs" / run_id / "metrics.jsonl").read_text(encoding="utf-8")


def rows(text: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in text.splitlines()]


def test_strategies_agree_and_a_killed_run_resumes_bit_for_bit(folder: Path):
    whole = succeed(folder, "whole")
    for strategy in ("ddp", "fsdp2"):
        split = rows(succeed(folder, strategy, f"strategy={strategy}", num_ranks=2))
        for ours, theirs in zip(split, rows(whole), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    code, _ = train(folder, "cut", prepare=die_in_step_5)
    key = folder / "runs" / "cut" / "private" / "key"
    assert code == signal.SIGKILL and key.read_bytes() == KEY
    assert succeed(folder, "cut") == whole
    check_files(folder / "runs" / "cut")
    status = read_status(folder / "runs" / "cut")
    assert status.epsilon == pytest.approx(20, abs=1e-2)
    assert "epsilon" in [column.header for column in status_table([status]).columns]


def check_files(run: Path) -> None:
    """Checks that a finished run has neither its secret nor facts about single rows, and states its guarantee."""
    assert not (run / "private").exists()
    written = [path for path in run.rglob("*") if path.is_file()]
    texts = [text for text in sequence_classification.TEXTS if "nobody" in text]
    for path in written:
        content = path.read_bytes()
        assert KEY not in content and KEY.hex().encode() not in content, path
        assert not any(text.encode() in content for text in texts), path
    names = {name for row in rows((run / "metrics.jsonl").read_text()) for name in row if name.startswith("train/")}
    assert names == {"train/clipped_share", "train/tokens"}
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["report_examples"] is None
    summary = json.loads((run / "summary.json").read_text())
    assert "train/loss" not in summary["last"]
    assert summary["privacy"]["spent_epsilon"] == pytest.approx(20, abs=1e-2)
    assert summary["privacy"]["sampling_rate"] == pytest.approx(12 / 48, rel=0.2)


def test_a_run_cannot_resume_without_its_secret_or_with_more_steps(folder: Path):
    train(folder, "cut", prepare=die_in_step_5)
    code, output = train(folder, "cut", f"trainer.max_steps={2 * STEPS}")
    assert code == 2 and "The noise of trained steps cannot be changed" in output
    (folder / "runs" / "cut" / "private" / "key").unlink()
    code, output = train(folder, "cut")
    assert code == 2 and "private/key, is missing" in " ".join(output.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.labels=null"], "`data.labels` is null, but privacy=dp_sgd is set"),
        (["privacy.delta=0.1"], "Choose less than"),
        (["trainer.global_batch_size=100"], "at most the size of the split"),
        (["task.class_weights=balanced"], "`task.class_weights` is balanced"),
        (["regularization=r_drop"], "`regularization` is RDrop"),
        (["privacy.unit=user"], "privacy.unit"),
    ],
)
def test_what_cannot_be_private_is_refused_before_a_run_folder_is_made(folder: Path, overrides, message):
    code, output = train(folder, "refused", *overrides)
    assert code == 2 and message in " ".join(output.split()), output
    assert not (folder / "runs").exists()


def test_a_check_needs_no_secret_and_writes_nothing(folder: Path):
    code, output = train(folder, "mine", "check=true")
    assert code == 0, output
    assert not (folder / "runs").exists()
