"""Lack of memory and killed loader processes are reported in one message with a remedy."""

import errno
import os
import signal
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from framework.distributed.processes.failure_report import REPORT, report_once
from framework.distributed.processes.shortages import explain
from framework.errors import DataError, ResourceError


class Endless(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        if index > 1:
            time.sleep(0.01)
        return os.getpid()


def test_a_killed_loader_process_is_named(capsys: pytest.CaptureFixture[str]):
    def train() -> None:
        for pid in DataLoader(Endless(), batch_size=None, num_workers=1):
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(RuntimeError) as raised:
        train()
    report_once(raised.value)
    assert REPORT.first is not None and REPORT.first.kind == "ResourceError"
    output = capsys.readouterr().err
    assert output.startswith("ResourceError: a loader process (pid ")
    # Torch sees the signal or the closed pipe first.
    assert "was killed by signal: Killed. The system" in output or "ended without a message. The system" in output
    assert output.count("\n") == 1


def test_a_loader_process_that_ended_without_a_message():
    error = RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")
    assert "a loader process (pid 12, 13) ended without a message." in str(explain(error))


def test_a_full_shared_memory_is_named():
    error = RuntimeError(
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit."
    )
    assert "/dev/shm, which is full. Enlarge it (docker run --shm-size=8g)" in str(explain(error))


def allocate() -> Any:
    return torch.empty(2**50)


@pytest.mark.parametrize(
    "action", [allocate, lambda: bytearray(2**62), lambda: (_ for _ in ()).throw(OSError(errno.ENOMEM, "no"))]
)
def test_a_host_without_memory_is_named(action):
    with pytest.raises((RuntimeError, MemoryError, OSError)) as raised:
        next(iter(action()))
    explained = explain(raised.value)
    assert isinstance(explained, ResourceError)
    assert explained.exit_code == 1
    assert str(explained).startswith("the host has no memory left (")


def test_a_gpu_without_memory_is_named():
    assert str(explain(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"))).startswith("the GPU has no memory")


@pytest.mark.parametrize("error", [DataError("x"), RuntimeError("size mismatch"), OSError(errno.ENOENT, "x")])
def test_other_errors_do_not_change(error):
    assert explain(error) is error
