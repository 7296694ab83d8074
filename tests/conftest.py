"""Fixtures for all tests, and the order of their files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from framework.distributed.processes.failure_report import REPORT
from tests.support.processes.workers import WorkerPool
from tests.support.tracking.blank_pictures import rendered_pictures, use_blank_pictures

# Tests compute little; a second thread that waits for the first costs more than it saves, especially beside other
# processes.
torch.set_num_threads(1)
use_blank_pictures()

_TESTS = Path(__file__).parent
_LONGEST_FIRST = [
    "faults/test_faults.py",
    "integration/test_slurm.py",
    "integration/test_training.py",
    "launch/test_cut_link.py",
    "integration/test_slurm_sweep.py",
    "tasks/test_battery.py",
    "integration/test_faults.py",
    "distributed/parallel/test_compile.py",
    "checkpoint/test_save_and_load.py",
    "integration/test_kill.py",
    "integration/test_commands.py",
    "launch/test_hosts.py",
    "integration/test_augmentation.py",
    "integration/test_preemption.py",
    "integration/test_sweep.py",
]
"""Files that take a minute or more. They run first, so that no worker begins one when the others have finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest files to the front."""
    positions = {_TESTS / name: position for position, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: positions.get(item.path, len(positions)))


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """Warm processes for multi-process tests: `workers.run(function, world_size, *args)`."""
    pool = WorkerPool()
    yield pool
    pool.close()


@pytest.fixture
def rendered() -> Iterator[None]:
    """Renders pictures. Other tests save one pixel."""
    with rendered_pictures():
        yield


@pytest.fixture(autouse=True)
def _no_step_of_an_earlier_test() -> Iterator[None]:
    """Resets the step of a run in this process; otherwise a process ends with its run."""
    yield
    REPORT.close()
