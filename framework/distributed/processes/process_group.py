"""Start and end of the process group: own timeout, a store that a restart cannot confuse, a clean leave."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from framework.distributed.processes.environment import process_info
from framework.distributed.processes.meeting_point import meeting_point
from framework.errors import DistributedError

_MARGIN_SECONDS = 60.0
"""The watchdog names the rank that hangs; collectives give up only if nobody is left to do so."""

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def attempt_prefix() -> str:
    """Prefix of this attempt's keys in a store that outlives its workers (torchrun counts its restarts)."""
    return "attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def check_fresh(store: Store, rank: int) -> None:
    """Checks that the keys of an attempt are not those of an earlier one.

    A change of membership starts workers anew without counting as a restart, so that they would meet in the keys that
    the workers before them left.

    Raises:
        DistributedError: This rank was there before.
    """
    if store.add(f"cloze/start_of_rank_{rank}", 1) > 1:
        raise DistributedError(
            f"rank {rank} finds in torchrun's store that it was started before in the same attempt, by workers that "
            "are gone; start every torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where nodes may leave or join."
        )


def _open_store(rank: int, timeout: timedelta) -> Store | None:
    """The store to meet in; None leaves it to torch (rank 0 hosts a fresh one).

    torchrun's own store lives through restarts of the workers, and gloo then reads the addresses of dead processes
    there (torch 2.11 to 2.13): each attempt needs its own prefix. Restart counts of several agents can differ; launch
    those with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which gives each attempt a store of its own.

    Raises:
        DistributedError: The prefix is not unique to this attempt, or the environment has no valid rendezvous address.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address, port = meeting_point()
        store = TCPStore(address, port, is_master=False, timeout=timeout)
        attempt = PrefixStore(attempt_prefix(), store)
        check_fresh(attempt, rank)
        return attempt
    if process_info().world_size == 1 and not os.environ.get("MASTER_ADDR"):
        return HashStore()
    meeting_point()
    return None


def collective_timeout(timeout_seconds: float) -> timedelta:
    """How long a collective waits, where a rank counts as hanging after a time."""
    return timedelta(seconds=timeout_seconds + _MARGIN_SECONDS)


@contextmanager
def process_group(strategy: str, device_type: str, timeout_seconds: float) -> Iterator[None]:
    """Holds the default process group while the block runs; `single` needs none. Collective: all ranks must enter.

    A group that exists already is used and left alone. After an error the ranks do not wait for each other.
    """
    info = process_info()
    if strategy == "single" or dist.is_initialized():
        yield
        return
    timeout = collective_timeout(timeout_seconds)
    device = None
    if device_type == "cuda":
        device = torch.device("cuda", info.local_rank)
        torch.cuda.set_device(device)
    hook = sys.excepthook  # torch replaces it, and does not put it back
    dist.init_process_group(
        _BACKENDS[device_type],
        store=_open_store(info.rank, timeout),
        rank=info.rank,
        world_size=info.world_size,
        timeout=timeout,
        device_id=device,
    )
    left_cleanly = False
    try:
        yield
        left_cleanly = True
    finally:
        sys.excepthook = hook
        if left_cleanly:
            dist.barrier()
        if left_cleanly or device_type == "cpu" or info.world_size == 1:
            # Destroying an NCCL group waits for collectives that a failed peer will never join; the process ends
            # anyway.
            dist.destroy_process_group()
