"""No step waits for the device or sends it constants, so that the device never idles and a step can be captured."""

from pathlib import Path

import pytest
import torch

from framework import train
from framework.modules import encoder_module
from framework.optim import combined
from tests.support.tasks.commands import prepare
from tests.support.training.host_waits import HostWaits, watch_steps
from tests.support.training.tiny_run import arguments, make_store

# The last step writes a row and validates, so that the host reads its results.
STEPS = [
    *("trainer.max_steps=4", "trainer.log_every_n_steps=4", "trainer.val_every_n_steps=4"),
    *("trainer.checkpoint_every_n_steps=null", "trainer.report_examples=null"),
]
ADAMW = ["optimizer=adamw", "optimizer.lr=1e-3"]
# Losses of retrieval and recommendation compare all sequences of a step, whose number the host must know.
FINE_TUNED = [
    *("sequence_classification", "token_classification", "question_answering", "multiple_choice", "reranking"),
]


def test_waits_and_constants_are_named() -> None:
    with HostWaits() as waits:
        ones = torch.ones(3)
        assert bool(ones.sum() > 0)
        ones.nonzero()
        ones + torch.tensor([1.0, 2.0, 3.0])
    assert waits.found == {
        "the host reads a scalar at outside of framework": 1,
        "the size of a result depends on values at outside of framework": 1,
        "a constant of the host becomes a tensor at outside of framework": 1,
    }


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> HostWaits:
    """Watches steps 2 and 3 of runs in which the optimizer holds its updates on the CPU as it does on CUDA."""
    found = HostWaits()
    monkeypatch.setattr(combined, "HOLDING_DEVICES", ("cpu",))
    monkeypatch.setattr(encoder_module, "use_sparse_gradients", lambda model: None)  # gradients are dense on CUDA
    watch_steps(monkeypatch, range(1, 3), lambda: found)
    return found


def test_pretraining_waits_nowhere(waits: HostWaits, tmp_path: Path) -> None:
    train.run(arguments(make_store(tmp_path / "data"), tmp_path, "watched", "single", *STEPS, *ADAMW))
    assert waits.num_operations > 500
    assert not waits.found


@pytest.mark.parametrize("name", FINE_TUNED)
def test_finetuning_waits_nowhere(waits: HostWaits, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train.run([*prepare(name, tmp_path), *STEPS, "run.id=watched"])
    assert waits.num_operations > 300
    assert not waits.found
