"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest

from tests.workers import WorkerPool


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """Warm processes for multi-process tests: `workers.run(function, world_size, *args)`."""
    pool = WorkerPool()
    yield pool
    pool.close()
