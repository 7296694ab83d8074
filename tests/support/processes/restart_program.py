"""Program that torchrun runs in a test. The first attempt fails, and the second must not see its keys in the store."""

import os
import sys

import torch
import torch.distributed as dist

from framework.distributed.processes.process_group import process_group

with process_group("ddp", "cpu", 20.0):
    total = torch.tensor(float(os.environ["RANK"]) + 1.0)
    dist.all_reduce(total)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        # A kill instead of an exception, so that nothing is cleaned up.
        os._exit(7)
    if dist.get_rank() == 0:
        sys.stdout.write(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']} sum {total.item()}\n")
assert not dist.is_initialized()
