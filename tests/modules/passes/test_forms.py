"""Every form of loss equals a plain loop and does not depend on how the step was split."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.data.planning.auto_budget import trial_batch
from framework.data.planning.collate import RoundedShape
from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import Sharding
from framework.modules.inference import Inference
from tests.support.processes.workers import WorkerPool
from tests.support.training import plain_loops
from tests.support.training.forms import ALPHA, EPSILON, WEIGHT, module_of
from tests.support.training.tiny_run import rows
from tests.support.training.toy_contrast import ContrastSource
from tests.support.training.toy_run import FP32, train

STEPS = 4
CADENCE = Cadence(max_steps=STEPS, log_every_n_steps=1, validate_every_n_steps=STEPS)
FORMS = ["r_drop", "adversarial", "step_level"]


class Trial(pl.Callback):
    """Tries a budget before the first step, as `micro_batch_tokens: auto` does."""

    def on_fit_start(self, trainer, pl_module) -> None:
        pl_module.runner.run_trial(trial_batch(trainer.datamodule.plans["train"].source, 60, STEPS, None))
        assert all(parameter.grad is None for parameter in pl_module.parameters())


def run(
    folder: str,
    form: str,
    strategy: str = "single",
    budget: int = 20,
    sharding: Sharding | None = None,
    mode: str = "",
    shape: RoundedShape | None = None,
) -> None:
    module = module_of(form)
    if sharding is not None:
        module.runner.sharding = sharding
    if mode:
        module.activation_checkpointing = ActivationCheckpointing(mode)  # type: ignore[arg-type]
    if strategy == "hsdp":
        # Two hosts, and therefore two copies.
        os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(int(os.environ["RANK"]) % 2)}
    train(Path(folder), strategy, CADENCE, budget, module=module, extra_callbacks=(Trial(),), shape=shape)


def same(ours: Path, theirs: Path) -> None:
    assert len(rows(ours)) == len(rows(theirs)) == STEPS
    for row, expected in zip(rows(ours), rows(theirs), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns by form a run of one process whose steps are one micro-batch each."""

    @functools.cache
    def once(form: str) -> Path:
        folder = tmp_path_factory.mktemp(form)
        run(str(folder), form, budget=1000)
        return folder

    return once


@pytest.mark.parametrize("form", FORMS)
def test_equals_a_plain_loop(form: str, whole: Callable[[str], Path]) -> None:
    loops: dict[str, Callable[..., Any]] = {
        "r_drop": functools.partial(plain_loops.r_drop, alpha=ALPHA),
        "adversarial": functools.partial(plain_loops.adversarial, epsilon=EPSILON, weight=WEIGHT),
        "step_level": plain_loops.contrast,
    }
    model = module_of(form).model
    measured = plain_loops.loop(loops[form], model, STEPS)
    for ours, expected in zip(rows(whole(form)), measured, strict=True):
        assert {key: ours[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    validated = {key for key in rows(whole(form))[-1] if key.startswith("val/") and key.endswith("loss")}
    if form == "step_level":
        expected = plain_loops.contrast_validation(model)
        assert {key: rows(whole(form))[-1][key] for key in expected} == pytest.approx(expected, rel=1e-5)
    else:
        assert validated == {"val/loss", "val/word_loss", "val/pair_loss"}


@pytest.mark.parametrize("form", FORMS)
def test_micro_batches_dummies_and_recomputation_do_not_matter(
    form: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run(str(tmp_path / "20"), form, budget=20)
    run(str(tmp_path / "40"), form, budget=40, mode="full")
    run(str(tmp_path / "rounded"), form, budget=20, shape=RoundedShape())
    for name in ("20", "40", "rounded"):
        same(tmp_path / name, whole(form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("strategy", "num_ranks", "budget", "sharding", "mode"),
    [
        ("ddp", 2, 20, None, ""),
        ("fsdp2", 2, 1000, None, "selective"),
        ("fsdp2", 2, 20, Sharding(gradient_sync="every", reshard_after_forward=False), ""),
        ("fsdp2", 3, 20, None, "full"),
        ("hsdp", 4, 20, None, ""),
        ("tp", 2, 20, None, ""),
    ],
)
def test_the_number_of_ranks_does_not_matter(
    form: str,
    strategy: str,
    num_ranks: int,
    budget: int,
    sharding: Sharding | None,
    mode: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    workers: WorkerPool,
) -> None:
    workers.run(run, num_ranks, str(tmp_path), form, strategy, budget, sharding, mode)
    same(tmp_path, whole(form))


def run_fp16(folder: str, form: str, scale: float) -> dict[str, float]:
    module = module_of(form, Precision("fp16", init_scale=scale))
    train(Path(folder), cadence=Cadence(max_steps=20, log_every_n_steps=1), module=module)
    assert module.runner.loss_scale is not None
    return module.runner.loss_scale.state_dict()


@pytest.mark.parametrize("form", FORMS)
def test_learns_in_fp16_as_in_fp32(form: str, tmp_path: Path) -> None:
    train(tmp_path / "fp32", cadence=Cadence(max_steps=20, log_every_n_steps=1), module=module_of(form))
    state = run_fp16(str(tmp_path / "fp16"), form, 2.0**10)
    assert state["num_overflows"] == 0
    exact, half = (torch.tensor([row["train/loss"] for row in rows(tmp_path / n)]) for n in ("fp32", "fp16"))
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=0)
    assert not torch.equal(half, exact)
    assert exact[-5:].mean() < exact[:5].mean() - 0.1


@pytest.mark.parametrize("form", FORMS)
def test_an_overflow_is_not_reported_as_a_non_finite_loss(form: str, tmp_path: Path) -> None:
    state = run_fp16(str(tmp_path), form, 2.0**28)
    assert 3 <= state["num_overflows"] < 20


def run_bf16(folder: str, form: str, strategy: str) -> None:
    module = module_of(form, Precision("bf16"))
    train(Path(folder), strategy, CADENCE, module=module)


@pytest.mark.parametrize("form", FORMS)
def test_bf16_is_one_model_on_shards_too(
    form: str, whole: Callable[[str], Path], tmp_path: Path, workers: WorkerPool
) -> None:
    run_bf16(str(tmp_path / "one"), form, "single")
    workers.run(run_bf16, 2, str(tmp_path / "two"), form, "fsdp2")
    for key in ("train/loss", "optim/grad_norm"):
        exact, one, two = ([row[key] for row in rows(f)] for f in (whole(form), tmp_path / "one", tmp_path / "two"))
        assert one == pytest.approx(exact, rel=5e-2)
        assert one != exact
        assert two == pytest.approx(one, rel=2e-2)


def test_evaluation_in_one_process_has_the_loss_of_the_validation(tmp_path: Path) -> None:
    module = module_of("step_level")
    train(tmp_path, cadence=CADENCE, module=module)
    inference = Inference(module.model, module.task, 20, FP32, torch.device("cpu"))
    found = {size: inference.evaluate(ContrastSource(11), step_size=size)[0] for size in (6, 11)}
    last = rows(tmp_path)[-1]
    assert {f"val/{name}": value for name, value in found[6].items()} == pytest.approx(
        {key: value for key, value in last.items() if key.startswith("val/")}, rel=1e-5
    )
    # More sequences give more candidates that may be confused with the right one.
    assert found[11]["contrast_loss"] > found[6]["contrast_loss"]
