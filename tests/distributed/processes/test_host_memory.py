"""Unused memory of a process on the CPU: the allocator keeps it for the next step."""

import resource
import subprocess
import sys

import pytest

PAGES_OF_A_TENSOR = 2**26 // resource.getpagesize()

FAULTS = """
import resource, torch
from framework.distributed.processes.host_memory import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(16):
    faults()  # until the heap has a place that fits
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("call", "is_kept"), [("keep_freed_memory()", True), ("", False)])
def test_the_next_step_reuses_the_pages_of_the_last(call: str, is_kept: bool) -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    assert (int(run.stdout) < PAGES_OF_A_TENSOR / 10) == is_kept
