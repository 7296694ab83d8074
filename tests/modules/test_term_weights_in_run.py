"""Runs whose loss terms have changing weights: the same for any division of the work, and after a resume."""

import math
from pathlib import Path

import pytest

from framework.callbacks.cadence import Cadence
from framework.callbacks.finite_guard import NonFinite
from framework.checkpoint.layout import newest_complete
from framework.modules.encoder_module import EncoderModule
from framework.nn import attention_backend
from tests.support.processes.workers import WorkerPool
from tests.support.training.bad_sequences import BadSequences
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import ToyTask, build_module, train
from tests.support.training.traced_graphs import TracedGraphs, varlen_attention

STEPS, CUT, STEP_SIZE = 6, 4, 0.3
TERMS = {"word": 1.0, "pair": 0.5, "z": 0.01}


def module_of_run(task: ToyTask | None = None) -> EncoderModule:
    task = task or ToyTask()
    task.weight_step_size = STEP_SIZE
    return build_module(task=task)


def run(folder: Path, strategy: str = "single", max_steps: int = STEPS, **options) -> EncoderModule:
    """Makes a run, or its missing rest."""
    cadence = Cadence(max_steps=max_steps, log_every_n_steps=1, validate_every_n_steps=2, checkpoint_every_n_steps=2)
    checkpoint = newest_complete(folder / "checkpoints")
    module = options.pop("module", None) or module_of_run()
    return train(folder, strategy, cadence, checkpoint=checkpoint, module=module, **options)


def run_on_rank(folder: str, strategy: str, max_steps: int) -> None:
    run(Path(folder), strategy, max_steps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_the_weights_follow_the_losses_of_the_steps_before(whole: Path) -> None:
    logits = {term: math.log(weight) for term, weight in TERMS.items()}
    for row in rows(whole):
        total = sum(map(math.exp, logits.values()))
        weights = {term: sum(TERMS.values()) * math.exp(logit) / total for term, logit in logits.items()}
        assert [row[f"train/{term}_weight"] for term in TERMS] == pytest.approx(list(weights.values()), rel=1e-6)
        losses = {term: row[f"train/{term}_loss"] for term in TERMS}
        assert row["train/loss"] == pytest.approx(sum(weights[term] * losses[term] for term in TERMS), rel=1e-6)
        logits = {term: logits[term] + STEP_SIZE * losses[term] for term in TERMS}
    assert rows(whole)[-1]["train/z_weight"] > 2 * rows(whole)[0]["train/z_weight"]


def test_a_step_has_the_gradient_of_a_task_with_these_weights(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    task = ToyTask()
    task.loss_weights = {term: rows(whole)[2][f"train/{term}_weight"] for term in TERMS}
    run(tmp_path, max_steps=3, module=build_module(task=task))
    for key in ("train/loss", "optim/grad_norm"):
        assert rows(tmp_path)[2][key] == pytest.approx(rows(whole)[2][key], rel=1e-6)


def test_other_micro_batches_give_the_same_rows(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, budget=60)
    for ours, theirs in zip(rows(tmp_path), rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


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


@pytest.mark.parametrize(("action", "same_as"), [("skip", 3), ("roll_back", 2)])
def test_a_step_that_is_not_finite_leaves_the_weights_of_the_model(tmp_path: Path, action: str, same_as: int) -> None:
    """Step 4 is bad. Skipped, it changes no weight; rolled back, the weights are those of the checkpoint of step 2."""
    module = module_of_run(BadSequences([20]))
    run(tmp_path, module=module, non_finite=NonFinite(action))
    weights = [[row[f"train/{term}_weight"] for term in TERMS] for row in rows(tmp_path)]
    assert weights[4] == weights[same_as] != weights[same_as - 1]


def test_captured_steps_have_the_weights_of_ordinary_ones(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(attention_backend, "_has_varlen_kernel", lambda x: True)
    monkeypatch.setattr(attention_backend, "varlen_attn", varlen_attention)
    captured = module_of_run()
    captured.build_graphs = lambda device: TracedGraphs()
    for name, module in {"ordinary": module_of_run(), "captured": captured}.items():
        run(tmp_path / name, module=module, budget=40, has_fixed_shapes=True, max_steps=9)
    assert rows(tmp_path / "captured") == rows(tmp_path / "ordinary")
