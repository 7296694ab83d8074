"""All strategies train the same model: a new strategy is tested by one row in RUNS."""

import functools
import math

import pytest
import torch
from torch import Tensor

from tests.support.models.tiny import Tiny, build
from tests.support.processes.workers import WorkerPool

NUM_STEPS = 20
RUNS = [
    ("ddp", 2),
    ("ddp", 4),
    ("fsdp2", 2),
    ("fsdp2", 3),
    ("fsdp2", 4),
    ("hsdp", 4),
    ("tp", 2),
    ("tp", 4),
    ("fsdp2_tp", 4),
]
RECIPES = {"bert, AdamW": (False, False), "pre-norm, Muon": (True, True)}


def curve(tiny: Tiny) -> list[tuple[float, float]]:
    """Returns losses and gradient norms; a validation pass between steps must change nothing."""
    values = []
    for step in range(NUM_STEPS):
        values.append(tiny.step(step))
        if step == 1:
            tiny.evaluate(step)
    return values


def run_curve(strategy: str, modern: bool, muon: bool, precision: str, num_micro_batches: int) -> Tensor:
    tiny = build(strategy, modern, muon, precision)
    tiny.num_micro_batches = num_micro_batches
    return torch.tensor(curve(tiny))


@functools.cache
def one_process(modern: bool, muon: bool, precision: str) -> Tensor:
    return run_curve("single", modern, muon, precision, 1)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("strategy", "world_size"), RUNS)
def test_losses_and_norms_equal_one_process(workers: WorkerPool, strategy: str, world_size: int, recipe: str) -> None:
    ranks = workers.run(run_curve, world_size, strategy, *RECIPES[recipe], "fp32", 3)
    assert all(torch.equal(rank, ranks[0]) for rank in ranks), "ranks disagree"
    torch.testing.assert_close(ranks[0], one_process(*RECIPES[recipe], "fp32"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_micro_batches_do_not_matter(recipe: str) -> None:
    found = run_curve("single", *RECIPES[recipe], "fp32", 4)
    torch.testing.assert_close(found, one_process(*RECIPES[recipe], "fp32"), rtol=1e-5, atol=0)


def test_bf16_is_one_model_under_every_strategy(workers: WorkerPool) -> None:
    exact, single = (one_process(False, False, precision)[:, 0] for precision in ("fp32", "bf16"))
    losses = {("single", 1): single}
    for strategy, world_size in RUNS:
        losses[strategy, world_size] = workers.run(run_curve, world_size, strategy, False, False, "bf16", 3)[0][:, 0]
    stacked = torch.stack(list(losses.values()))
    assert (stacked.max(dim=0).values - stacked.min(dim=0).values).max() < 1e-2
    torch.testing.assert_close(single, exact, rtol=0, atol=1e-2)
    assert not any(torch.equal(exact, found) for found in losses.values())


def test_the_run_learns_so_that_agreement_is_significant() -> None:
    losses = one_process(False, False, "fp32")[:, 0]
    assert losses[0] == pytest.approx(math.log(101), abs=0.2)
    assert losses[-5:].mean() < losses[:5].mean() - 0.05
