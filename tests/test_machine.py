"""The cores and GPUs of this process: affinity, quotas of control groups, CUDA_VISIBLE_DEVICES."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.machine import usable_cores, usable_gpus

ROOT = Path(__file__).resolve().parents[1]
GPUS = "\n".join(f"GPU {index}: NVIDIA H200 (UUID: GPU-{index}{index}-ab)" for index in range(8))


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 64),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "800000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            64,
        ),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_counts(tmp_path, many_cores, files, cores):
    assert usable_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 8), ("0,1", 2), ("3", 1), ("", 0), ("-1", 0), ("0,9,1", 1), ("GPU-22,GPU-3", 2), ("MIG-7", 1), ("none", 0)],
)
def test_cuda_visible_devices_counts(tmp_path, monkeypatch, visible, count):
    program = write(tmp_path, {"nvidia-smi": f"#!/bin/sh\ncat <<E\n{GPUS}\nE"}) / "nvidia-smi"
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == count


def test_the_file_is_a_program_that_respects_affinity():
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "framework" / "machine.py")],
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/nowhere"},
    )
    assert done.stdout == "0 1\n"
