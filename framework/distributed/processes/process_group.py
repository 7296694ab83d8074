"""Start and end of the process group, with its timeout and with a store that is separate for each attempt."""

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
"""Time that collectives wait longer than the watchdog, which can so report the hanging rank before they fail."""

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def attempt_prefix() -> str:
    """Returns the prefix of this attempt's keys in a store that outlives the workers. torchrun counts the restarts."""
    return "attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def check_fresh(store: Store, rank: int) -> None:
    """Checks that no earlier workers have used the keys of this attempt.

    When nodes join or leave, torchrun starts new workers without counting a restart. The new workers would then read
    the keys of the earlier workers.

    Raises:
        DistributedError: The rank has started in this attempt before.
    """
    if store.add(f"cloze/start_of_rank_{rank}", 1) > 1:
        raise DistributedError(
            f"torchrun's store contains an earlier start of rank {rank} in the same attempt, by workers that have "
            "ended. If nodes may join or leave, each attempt needs its own store. Start every torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1."
        )


def _open_store(rank: int, timeout: timedelta) -> Store | None:
    """Opens the rendezvous store; None: torch creates one, which rank 0 hosts.

    torchrun's own store outlives restarts of the workers, and gloo then reads the addresses of dead processes from it
    (torch 2.11 to 2.13). Each attempt therefore needs its own prefix. The restart counts of several agents can differ.
    Start such agents with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which gives each attempt its own store.

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
    """Returns the timeout of collectives.

    Args:
        timeout_seconds: Time without progress after which the watchdog reports a hanging rank.
    """
    return timedelta(seconds=timeout_seconds + _MARGIN_SECONDS)


@contextmanager
def process_group(strategy: str, device_type: str, timeout_seconds: float) -> Iterator[None]:
    """Provides the default process group while the block runs; `single` needs none. Collective: all ranks must enter.

    An existing group is used and not destroyed. After an error the ranks do not wait for each other.
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
    hook = sys.excepthook  # torch replaces the hook and does not restore it
    dist.init_process_group(
        _BACKENDS[device_type],
        store=_open_store(info.rank, timeout),
        rank=info.rank,
        world_size=info.world_size,
        timeout=timeout,
        device_id=device,
    )
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        sys.excepthook = hook
        if succeeded:
            dist.barrier()
        if succeeded or device_type == "cpu" or info.world_size == 1:
            # Otherwise the group is not destroyed: destroying an NCCL group would wait for collectives that a failed
            # rank never joins, and the process ends anyway.
            dist.destroy_process_group()
