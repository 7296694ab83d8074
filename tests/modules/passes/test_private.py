"""Private steps equal a loop over single sequences under every strategy and budget, and resume bit for bit."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from framework.checkpoint.layout import newest_complete
from framework.data.planning.collate import RoundedShape
from framework.distributed.parallel.sharding import Sharding
from tests.support.processes.workers import WorkerPool
from tests.support.training import private_run
from tests.support.training.cuts import CutAt, CutError
from tests.support.training.tiny_run import rows

Run = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


def same(ours: Run, theirs: Run) -> None:
    for row, expected in zip(ours[0], theirs[0], strict=True):
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        torch.testing.assert_close(ours[1][name], value, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Run]:
    """Returns by expected batch a run of one process whose steps are one micro-batch each."""

    @functools.cache
    def once(expected_batch: int) -> Run:
        folder = tmp_path_factory.mktemp("whole")
        weights = private_run.run(str(folder), budget=1000, expected_batch=expected_batch)
        return rows(folder), weights

    return once


def test_some_steps_of_the_small_batch_are_empty():
    sizes = [len(private_run.sampled(step, 1)) for step in range(private_run.STEPS)]
    assert 0 in sizes and max(sizes) > 1


@pytest.mark.parametrize("expected_batch", [6, 1])
def test_equals_a_loop_over_single_sequences(expected_batch: int, whole: Callable[[int], Run]):
    measured, weights = private_run.loop(expected_batch)
    ours = whole(expected_batch)
    same(ours, (measured, weights))
    shares = [row["train/clipped_share"] for row in ours[0]]
    assert sum(shares) > 0 and (expected_batch == 1 or min(shares) < 1)


def test_units_of_several_sequences_equal_a_loop_over_single_units(workers: WorkerPool, tmp_path: Path):
    expected = private_run.loop(3, has_units=True)
    weights = private_run.run(str(tmp_path / "one"), budget=1000, expected_batch=3, has_units=True)
    same((rows(tmp_path / "one"), weights), expected)
    assert sum(row["train/clipped_share"] for row in expected[0]) > 0
    two = str(tmp_path / "two")
    for weights in workers.run(private_run.run, 2, two, "fsdp2", 40, 3, None, "", True):
        same((rows(tmp_path / "two"), weights), expected)


@pytest.mark.parametrize(("strategy", "budget"), [("ddp", 20), ("fsdp2", 1000), ("hsdp", 40)])
def test_four_ranks_equal_one(strategy: str, budget: int, whole, workers: WorkerPool, tmp_path: Path):
    for weights in workers.run(private_run.run, 4, str(tmp_path), strategy, budget):
        same((rows(tmp_path), weights), whole(6))


def test_losses_of_training_rows_are_not_written(whole: Callable[[int], Run]):
    assert all(
        not key.startswith("train/") or key in ("train/clipped_share", "train/tokens")
        for row in whole(6)[0]
        for key in row
    )
    assert "val/loss" in whole(6)[0][-1]


def test_micro_batches_dummies_and_recomputation_do_not_matter(whole: Callable[[int], Run], tmp_path: Path):
    for name, options in {
        "20": {"budget": 20},
        "40": {"budget": 40, "mode": "full"},
        "rounded": {"budget": 20, "shape": RoundedShape()},
    }.items():
        weights = private_run.run(str(tmp_path / name), **options)
        same((rows(tmp_path / name), weights), whole(6))


@pytest.mark.parametrize(
    ("strategy", "mode", "sharding", "expected_batch"),
    [
        ("ddp", "", None, 6),
        ("ddp", "", None, 1),
        ("fsdp2", "", None, 1),
        ("fsdp2", "full", Sharding(gradient_sync="every"), 6),
        ("fsdp2", "", Sharding(reshard_after_forward=False), 6),
    ],
)
def test_two_ranks_equal_one(strategy, mode, sharding, expected_batch, whole, workers: WorkerPool, tmp_path: Path):
    folder = str(tmp_path)
    results = workers.run(private_run.run, 2, folder, strategy, 40, expected_batch, sharding, mode)
    for weights in results:
        same((rows(tmp_path), weights), whole(expected_batch))


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path):
    weights = private_run.run(str(tmp_path / "whole"))
    folder = tmp_path / "cut"
    with pytest.raises(CutError):
        private_run.run(str(folder), extra_callbacks=(CutAt("on_train_batch_start", 3),))
    checkpoint = newest_complete(folder / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step_00000002"
    resumed = private_run.run(str(folder), checkpoint=checkpoint)
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
