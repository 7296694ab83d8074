"""Weights read from a run: the trained ones, their moving average, or the mean of several checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.checkpoint import load
from framework.checkpoint.load import read_full_state
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import build, full, full_parameters
from tests.support.processes.workers import WorkerPool

STEPS = 4
Weights = dict[str, Tensor]


def train(folder: Path, strategy: str = "single", decay: float | None = 0.5) -> tuple[list[Weights], list[Weights]]:
    """Writes a checkpoint after each step; returns the expected weights and averages of each."""
    tiny = build(strategy)
    tiny.model.get_parameter("head.dense.bias").requires_grad_(False)
    tiny.optimizer = type(tiny.optimizer)(
        [group | {"params": parameters, "names": names} for group, parameters, names in _trained(tiny.optimizer)]
    )
    if decay is not None:
        tiny.optimizer.keep_average(decay)
    weights, averages = [], []
    for step in range(STEPS):
        tiny.step(step)
        save_checkpoint(folder, step + 1, tiny.model, tiny.optimizer, {})
        weights.append(full_parameters(tiny.model))
        state = {name: full(value) for name, value in tiny.optimizer.named_state().items()}
        averages.append({name: state.get(f"{name}.ema", value) for name, value in weights[-1].items()})
    return weights, averages


def _trained(optimizer: CombinedOptimizer) -> Iterator[tuple[dict[str, Any], list[Tensor], list[str]]]:
    """Returns the groups without frozen parameters."""
    for group in optimizer.param_groups:
        kept = [(p, name) for p, name in zip(group["params"], group["names"], strict=True) if p.requires_grad]
        rest = {key: value for key, value in group.items() if key not in ("params", "names")}
        yield rest, [p for p, _ in kept], [name for _, name in kept]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Weights], list[Weights]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, *train(folder)


def assert_same(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_the_average_is_read_if_the_run_kept_one_and_raw_weights_on_request(run) -> None:
    folder, weights, averages = run
    newest = folder / "step_00000004"
    for kind, expected in (("auto", averages), ("ema", averages), ("raw", weights)):
        assert_same(read_full_state(newest, kind), expected[-1])
    assert not torch.equal(weights[-1]["head.dense.weight"], averages[-1]["head.dense.weight"])
    assert torch.equal(weights[-1]["head.dense.bias"], averages[-1]["head.dense.bias"]), "frozen"


@pytest.mark.parametrize(("kind", "newest", "count"), [("raw", 4, 3), ("ema", 4, 2), ("auto", 3, 3), ("raw", 2, 1)])
def test_the_mean_covers_a_checkpoint_and_earlier_ones(run, kind: str, newest: int, count: int) -> None:
    folder, weights, averages = run
    chosen = (weights if kind == "raw" else averages)[newest - count : newest]
    expected = {name: torch.stack([one[name].double() for one in chosen]).mean(0).float() for name in chosen[0]}
    assert_same(read_full_state(folder / f"step_{newest:08d}", kind, count), expected)


def test_a_mean_keeps_only_one_tensor_of_one_checkpoint_beside_its_result(run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, weights, _ = run
    counts = []
    original = load._load

    def watched(folder: Path, tensors: Weights, no_dist: bool) -> None:
        counts.append(len(tensors))
        original(folder, tensors, no_dist)

    monkeypatch.setattr(load, "_load", watched)
    read_full_state(folder / "step_00000004", average_last=3)
    assert counts == [1] * (3 * len(weights[0]))


def test_missing_weights_are_named(run, tmp_path: Path) -> None:
    folder, _, _ = run
    (folder / "step_00000001" / "COMPLETE").rename(folder / "step_00000001" / "hidden")
    try:
        with pytest.raises(CheckpointError, match=r"average_last=4, but .* holds 3 complete .*keep_last=4"):
            read_full_state(folder / "step_00000004", average_last=4)
    finally:
        (folder / "step_00000001" / "hidden").rename(folder / "step_00000001" / "COMPLETE")
    weights, _ = train(tmp_path, decay=None)
    with pytest.raises(CheckpointError, match=r"holds no moving average .* Use weights=raw"):
        read_full_state(tmp_path / "step_00000004", "ema")
    assert_same(read_full_state(tmp_path / "step_00000004"), weights[-1])


def train_on_rank(folder: str) -> tuple[list[Weights], list[Weights]]:
    return train(Path(folder), "fsdp2")


def test_shards_are_joined_before_the_mean(workers: WorkerPool, tmp_path: Path) -> None:
    weights, averages = workers.run(train_on_rank, 2, str(tmp_path))[0]
    expected = {name: torch.stack([one[name].double() for one in averages]).mean(0).float() for name in averages[0]}
    assert_same(read_full_state(tmp_path / "step_00000004", average_last=4), expected)
    assert_same(read_full_state(tmp_path / "step_00000004", "raw"), weights[-1])
