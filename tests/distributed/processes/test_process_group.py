"""The process group under torchrun, and the facts that ranks compare through it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from framework.distributed.processes.agreement import check_agreement, check_shared_folder, on_first_rank
from framework.distributed.processes.process_group import check_fresh
from framework.distributed.reduce import any_rank
from framework.errors import ConfigError, DistributedError
from tests.support.processes.workers import WorkerPool

ROOT = Path(__file__).resolve().parents[3]


def test_restart_under_torchrun() -> None:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK", "WORLD"))
    }
    environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--master-port", "29631", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "--max-restarts", "1", str(ROOT / "tests" / "support" / "processes" / "restart_program.py")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "attempt 1 sum 3.0" in result.stdout


def test_an_attempt_that_meets_the_keys_of_another_is_rejected() -> None:
    store = dist.HashStore()
    for rank in range(2):
        check_fresh(store, rank)
    with pytest.raises(DistributedError, match="an earlier start of rank 1 in the same attempt"):
        check_fresh(store, 1)


def compare(different: bool) -> str:
    facts = {"config": "abc", "data": f"rank {dist.get_rank()}" if different else "same"}
    try:
        check_agreement(facts)
    except DistributedError as error:
        return str(error)
    return "agreed"


def share(folders: list[str]) -> str:
    try:
        check_shared_folder(Path(folders[dist.get_rank() % len(folders)]), wait_seconds=0.3)
    except DistributedError as error:
        return str(error)
    return "shared"


def fail_first() -> str:
    def action() -> None:
        raise ConfigError("from rank 0")

    try:
        on_first_rank(action)
    except ConfigError as error:
        return str(error)
    return "nothing"


def some_rank() -> tuple[bool, bool]:
    return any_rank(dist.get_rank() == 1), any_rank(False)


def test_ranks_compare_facts(workers: WorkerPool) -> None:
    assert workers.run(compare, 2, False) == ["agreed", "agreed"]
    messages = workers.run(compare, 3, True)
    assert messages[0].startswith("data is rank 0 on rank 0 but rank 1 on rank 1.")
    assert len(set(messages)) == 1


def test_run_folder_must_be_shared(workers: WorkerPool, tmp_path: Path) -> None:
    assert workers.run(share, 2, [str(tmp_path / "a")]) == ["shared", "shared"]
    assert list((tmp_path / "a").iterdir()) == []
    messages = workers.run(share, 2, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert all(message.startswith("Rank 1 on host ") for message in messages)


def test_the_result_of_the_first_rank_is_used_on_all(workers: WorkerPool) -> None:
    assert workers.run(fail_first, 2) == ["from rank 0"] * 2
    assert workers.run(some_rank, 2) == [(True, False)] * 2
