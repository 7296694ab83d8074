"""A run under torchrun, killed with SIGKILL at a random step and started again: not one bit of its rows differs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 24
WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A token store of invented sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = [first + last for first in ("ba", "ke", "lo", "mi", "nu") for last in ("ra", "se", "ti", "vo", "zu", "")]
    for index in range(40):
        sentences = [" ".join(draw.choices(words, k=draw.randint(3, 14))) + "." for _ in range(draw.randint(3, 12))]
        (folder / f"{index}.txt").write_text(" ".join(sentences), encoding="utf-8")
    command = [sys.executable, "-m", "framework.prepare", "corpus=text", f"corpus.sources.text.files={folder}/*.txt"]
    subprocess.run(
        [*command, f"store={folder / 'store'}", "vocabulary.vocab_size=120"], check=True, capture_output=True
    )
    return folder / "store"


def start(store: Path, run_id: str, num_ranks: int, strategy: str, *overrides: str) -> subprocess.Popen[bytes]:
    """Starts torchrun in a process group of its own, so that all of it can be killed at once."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)),
        *("-m", "framework.train", "experiment=pretrain_demo", "logger=none", "precision=fp32", f"strategy={strategy}"),
        *(f"data.store={store}", "data.validation_fraction=0.2", f"tokenizer.path={store / 'tokenizer'}"),
        *(f"run.dir={store.parent}", f"run.id={run_id}", "model.vocab_size=null", "model.hidden_size=32"),
        *("model.num_layers=2", "model.num_heads=2", "model.intermediate_size=48", "model.hidden_dropout=0.1"),
        *("task.sequence_length=32", f"trainer.max_steps={STEPS}", "trainer.global_batch_size=9"),
        *("trainer.micro_batch_tokens=64", "trainer.log_every_n_steps=1", "trainer.val_every_n_steps=5"),
        *("trainer.checkpoint_every_n_steps=3", *overrides),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for_rows(run: subprocess.Popen[bytes], path: Path, num_rows: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists() or len(path.read_bytes().splitlines()) < num_rows:
        assert run.poll() is None, run.communicate()[0].decode()
        assert time.monotonic() < deadline, f"no row {num_rows} in {path} after {WAIT_SECONDS} s"
        time.sleep(0.005)


def finish(run: subprocess.Popen[bytes]) -> None:
    output = run.communicate(timeout=WAIT_SECONDS)[0].decode()
    assert run.returncode == 0, output


@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "fsdp2"), (4, "ddp")])
def test_killed_run_goes_on_bit_for_bit(corpus: Path, num_ranks: int, strategy: str) -> None:
    whole, killed = f"whole{num_ranks}", f"killed{num_ranks}"
    finish(start(corpus, whole, num_ranks, strategy))

    run = start(corpus, killed, num_ranks, strategy)
    moment = random.SystemRandom().randint(4, STEPS - 2)
    wait_for_rows(run, corpus.parent / killed / "metrics.jsonl", moment)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    cut = (corpus.parent / killed / "metrics.jsonl").read_bytes()
    assert len(cut.splitlines()) < STEPS
    finish(start(corpus, killed, num_ranks, strategy))

    expected = (corpus.parent / whole / "metrics.jsonl").read_bytes()
    assert (corpus.parent / killed / "metrics.jsonl").read_bytes() == expected, f"killed at row {moment}"
    assert [json.loads(line)["step"] for line in expected.splitlines()] == list(range(1, STEPS + 1))
    summary = json.loads((corpus.parent / killed / "summary.json").read_text(encoding="utf-8"))
    assert summary["ended"] == "finished"
    assert summary["steps"] == STEPS
