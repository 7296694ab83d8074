"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.workers import WorkerPool

# Tests compute little; a second thread that waits for the first costs more than it gives, above all beside other
# processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """Warm processes for multi-process tests: `workers.run(function, world_size, *args)`."""
    pool = WorkerPool()
    yield pool
    pool.close()
