"""Tests of the warm workers."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.processes.workers import WorkerError, WorkerPool


def rank_sum(offset: int) -> tuple[int, float]:
    value = torch.tensor(float(dist.get_rank() + offset))
    dist.all_reduce(value)
    return int(os.environ["RANK"]), value.item()


def fail_on_last() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("only the last rank")
    dist.barrier()


def hang() -> None:
    time.sleep(60)


def test_fresh_group_of_each_size(workers: WorkerPool) -> None:
    assert workers.run(rank_sum, 2, 10) == [(0, 21.0), (1, 21.0)]
    assert workers.run(rank_sum, 1, 10) == [(0, 10.0)]
    assert workers.run(rank_sum, 3, 0) == [(0, 3.0), (1, 3.0), (2, 3.0)]


def test_an_error_returns_with_its_traceback_and_a_hang_is_ended() -> None:
    pool = WorkerPool()
    with pytest.raises(WorkerError, match="only the last rank") as caught:
        pool.run(fail_on_last, 2)
    assert "fail_on_last" in str(caught.value)
    started = time.monotonic()
    with pytest.raises(WorkerError, match="gave no answer"):
        pool.run(hang, 1, timeout=1.0)
    assert time.monotonic() - started < 40
    pool.close()
