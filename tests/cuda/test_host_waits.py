"""No step of a run on a GPU makes the host wait for it: CUDA itself raises an error if one does."""

from pathlib import Path

import pytest

from framework import train
from tests.support.needs import cuda
from tests.support.tasks.commands import prepare
from tests.support.training.host_waits import refuse_synchronization, watch_steps
from tests.support.training.tiny_run import arguments, make_store

pytestmark = cuda

STEPS = [
    *("trainer.max_steps=6", "trainer.log_every_n_steps=6", "trainer.val_every_n_steps=6", "precision=bf16"),
    *("trainer.checkpoint_every_n_steps=null", "trainer.report_examples=null"),
]
ADAMW = ["optimizer=adamw", "optimizer.lr=1e-3"]


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
def test_pretraining_waits_nowhere(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_steps(monkeypatch, range(2, 5), refuse_synchronization)
    train.run(arguments(make_store(tmp_path / "data"), tmp_path, "watched", strategy, *STEPS, *ADAMW))


@pytest.mark.parametrize("name", ["sequence_classification", "token_classification", "question_answering"])
def test_finetuning_waits_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_steps(monkeypatch, range(2, 5), refuse_synchronization)
    monkeypatch.chdir(tmp_path)
    train.run([*prepare(name, tmp_path), *STEPS, "run.id=watched"])
