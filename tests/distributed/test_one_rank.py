"""A strategy on one rank trains the plain module, and its checkpoints are those of any other number of ranks."""

import json
from pathlib import Path

import pytest
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.distributed.parallel.sharding import Sharding
from tests.support.models.tiny import build
from tests.support.processes.workers import WorkerPool
from tests.support.training.toy_run import train


def run_to(run_folder: str, strategy: str, max_steps: int) -> bool:
    """Starts or resumes a run; returns True if its module is not wrapped."""
    folder = Path(run_folder)
    cadence = Cadence(max_steps=max_steps, log_every_n_steps=1, checkpoint_every_n_steps=2)
    module = train(folder, strategy, cadence, checkpoint=newest_complete(folder / "checkpoints"))
    return not any(isinstance(each, FSDPModule) for each in module.model.modules()) and not any(
        isinstance(each, DTensor) for each in module.model.parameters()
    )


def rows(run_folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process without a process group."""
    run_folder = tmp_path_factory.mktemp("whole")
    run_to(str(run_folder), "single", 6)
    return run_folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
def test_one_rank_is_a_plain_module_between_runs_of_two(
    strategy: str, whole: Path, tmp_path: Path, workers: WorkerPool
) -> None:
    assert workers.run(run_to, 1, str(tmp_path), strategy, 2) == [True]
    assert rows(tmp_path) == rows(whole)[:2]
    assert workers.run(run_to, 2, str(tmp_path), strategy, 4) == [False, False]
    assert workers.run(run_to, 1, str(tmp_path), strategy, 6) == [True]
    for ours, theirs in zip(rows(tmp_path), rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def is_wrapped_if_offloaded() -> list[bool]:
    return [isinstance(build(name, sharding=Sharding(cpu_offload=True)).model, FSDPModule) for name in ("ddp", "fsdp2")]


def test_offloaded_weights_are_still_gathered_for_each_layer(workers: WorkerPool) -> None:
    assert workers.run(is_wrapped_if_offloaded, 1) == [[False, True]]
