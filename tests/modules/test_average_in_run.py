"""A run with a moving average: it trains as without, validates the average, and resumes bit for bit."""

from pathlib import Path

import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.checkpoint.load import read_full_state
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.precision import Precision
from framework.modules.inference import Inference
from tests.support.processes.workers import WorkerPool
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import ToySource, build_module, train

DECAY = 0.8
STEPS, CUT = 6, 4


def run(folder: Path, strategy: str = "single", max_steps: int = STEPS, ema_decay: float | None = DECAY) -> None:
    """Makes a run, or its missing rest."""
    cadence = Cadence(max_steps=max_steps, log_every_n_steps=1, validate_every_n_steps=2, checkpoint_every_n_steps=2)
    checkpoint = newest_complete(folder / "checkpoints")
    train(folder, strategy, cadence, checkpoint=checkpoint, module=build_module(ema_decay=ema_decay))


def run_on_rank(folder: str, strategy: str, max_steps: int) -> None:
    run(Path(folder), strategy, max_steps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_training_does_not_use_the_average_and_validation_does(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, ema_decay=None)
    for ours, theirs in zip(rows(whole), rows(tmp_path), strict=True):
        assert {key: value for key, value in ours.items() if not key.startswith("val/")} == {
            key: value for key, value in theirs.items() if not key.startswith("val/")
        }
    assert rows(whole)[-1]["val/loss"] != pytest.approx(rows(tmp_path)[-1]["val/loss"], rel=1e-4)


def test_the_last_validation_is_that_of_the_average_in_the_checkpoint(whole: Path) -> None:
    state = read_full_state(whole / "checkpoints" / f"step_{STEPS:08d}", "ema")
    module = build_module()
    values = ((name, lambda name=name: state[name]) for name, _ in module.model.named_parameters())
    materialize(module.model, values, "cpu")
    inference = Inference(module.model, module.task, 100, Precision("fp32"), torch.device("cpu"))
    found, _ = inference.evaluate(ToySource(11))
    assert rows(whole)[-1]["val/loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert rows(whole)[-1]["val/word_accuracy"] == pytest.approx(found["word_accuracy"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_it_resumes_bit_for_bit_and_up_to_rounding_at_another_world_size(
    workers: WorkerPool, whole: Path, tmp_path: Path, strategy: str
) -> None:
    workers.run(run_on_rank, 2, str(tmp_path / "whole"), strategy, STEPS)
    workers.run(run_on_rank, 2, str(tmp_path / "cut"), strategy, CUT)
    workers.run(run_on_rank, 2, str(tmp_path / "cut"), strategy, STEPS)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    # One process resumes a run that two have begun.
    workers.run(run_on_rank, 2, str(tmp_path / "other"), strategy, CUT)
    run(tmp_path / "other")
    for ours, theirs in zip(rows(tmp_path / "other"), rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
