"""Counts the cores and GPUs that this process may use: `python framework/machine.py` prints GPUs, then cores.

The launchers call this file by its path, so it imports only the standard library. The counts respect CPU affinity, the
CPU quota of a container and CUDA_VISIBLE_DEVICES.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LISTED_GPU = re.compile(r"^GPU \d+:(?:.*\(UUID: (GPU-[^)]*)\))?", re.MULTILINE)


def usable_cores(root: Path = Path("/")) -> int:
    """Returns the number of cores that this process may use, at least 1.

    Args:
        root: Folder that contains proc/ and sys/.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([float(allowed), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yields the CPU quota, in cores, of each control group around this process that has one (versions 1 and 2)."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # the system is not Linux
    for _, controllers, group in (line.split(":", 2) for line in groups):
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        # Inside a container the group's path may be the host's; the container's own group is then at the top.
        folder = top / group.lstrip("/")
        for each in (folder, *folder.parents):
            quota = _quota_of(each)
            if quota is not None:
                yield quota
            if each == top:
                break


def _quota_of(folder: Path) -> float | None:
    """Returns the quota of one control group in cores; None without a quota."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def usable_gpus() -> int:
    """Returns the number of GPUs that `nvidia-smi` lists and CUDA_VISIBLE_DEVICES allows; 0 without `nvidia-smi`."""
    try:
        answer = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 0
    listed = _LISTED_GPU.findall(answer.stdout)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(listed)
    number = 0
    for name in (each.strip() for each in visible.split(",")):
        is_index = name.isdecimal() and int(name) < len(listed)
        if not (
            is_index
            or name.startswith("MIG-")
            or (name.startswith("GPU-") and any(each.startswith(name) for each in listed))
        ):
            break  # CUDA ignores all entries after an unknown one
        number += 1
    return number


def machine() -> None:
    """Prints the number of GPUs and of cores."""
    usage = "python -m framework.machine"
    about = "print the number of GPUs and of cores that this process may use"
    argparse.ArgumentParser(usage, usage=f"{usage}: {about}").parse_args()
    sys.stdout.write(f"{usable_gpus()} {usable_cores()}\n")


if __name__ == "__main__":
    machine()
