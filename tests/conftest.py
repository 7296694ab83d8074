"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest
import torch

from framework.distributed.processes.failure_report import REPORT
from tests.support.processes.workers import WorkerPool

# Tests compute little; a second thread that waits for the first costs more than it saves, especially beside other
# processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """Warm processes for multi-process tests: `workers.run(function, world_size, *args)`."""
    pool = WorkerPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _no_step_of_an_earlier_test() -> Iterator[None]:
    """Resets the step of a run in this process; otherwise a process ends with its run."""
    yield
    REPORT.close()
