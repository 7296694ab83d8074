"""Measures links between nodes: bandwidth and clock difference of each pair, then an all-reduce over all ranks.

A library may not notice a dead link in time. Each measurement runs in its own thread, which is abandoned if it hangs.
"""

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import median
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from framework.distributed.nodes.report import LATE, MEGABYTE, Link
from framework.errors import DistributedError

T = TypeVar("T")

_CLOCK_ROUNDS = 5
_SPEED_ROUNDS = 3


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Returns rounds in which each pair of `count` nodes meets once and no node meets two others (circle method)."""
    seats: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    plan = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        plan.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return plan


def within(seconds: float, action: Callable[[], T]) -> T:
    """Returns the result of an action that may hang.

    Args:
        seconds: Seconds to wait.
        action: Function that runs in its own thread.

    Raises:
        DistributedError: The action failed, or did not end in time.
    """
    results: list[T] = []
    errors: list[RuntimeError] = []

    def run() -> None:
        try:
            results.append(action())
        except RuntimeError as error:  # gloo and NCCL raise RuntimeError
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise DistributedError(str(errors[0]).splitlines()[0]) from errors[0]
    if not results:
        raise DistributedError(f"{LATE} {seconds:g} s")
    return results[0]


def measure_link(
    store: dist.Store, rank: int, device: torch.device, num_bytes: int, seconds: float, clock: Callable[[], float]
) -> Link:
    """Measures the link between two processes. Collective: both must call.

    Args:
        store: Store of these two processes, on its own connection: a thread that hangs blocks the connection.
        rank: 0 or 1; the result of rank 0 counts.
        device: Device of the tensors that are sent.
        num_bytes: Number of bytes sent in each direction.
        seconds: Seconds to wait.
        clock: Function that returns the time of this node in seconds.
    """

    def measure() -> Link:
        group = make_group(store, rank, 2, device, seconds)
        send, receive = _exchange(group, 1 - rank, device)
        differences = []
        stamp = torch.zeros(1, dtype=torch.float64, device=device)
        for _ in range(_CLOCK_ROUNDS):
            if rank == 0:
                begin = clock()
                send(stamp)
                receive(stamp)
                end = clock()
                # The shortest round trip gives the best estimate (RFC 5905, section 10).
                differences.append((end - begin, stamp.item() - (begin + end) / 2))
            else:
                receive(stamp)
                send(stamp.fill_(clock()))
        load = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        durations = []
        for _ in range(_SPEED_ROUNDS):
            begin = time.perf_counter()
            for step in (send, receive) if rank == 0 else (receive, send):
                step(load)
            durations.append(time.perf_counter() - begin)
        return Link(2 * num_bytes / min(durations) / MEGABYTE, min(differences)[1] if differences else 0.0)

    try:
        return within(seconds, measure)
    except DistributedError as error:
        return Link(None, None, str(error))


def measure_all_reduce(
    store: dist.Store, rank: int, world_size: int, device: torch.device, sizes: Sequence[int], seconds: float
) -> dict[int, float]:
    """Measures all-reduces over all ranks. Collective: all ranks must call.

    Args:
        store: Store of all ranks, on its own connection.
        rank: Rank of this process.
        world_size: Number of ranks.
        device: Device of the tensors that are reduced.
        sizes: Sizes of the tensors in bytes.
        seconds: Seconds to wait.

    Returns:
        Bandwidth of one rank's link in MB/s for each size, median of three: 2 (n - 1) / n of the bytes in the time of
        an all-reduce (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms, section 3).

    Raises:
        DistributedError: The all-reduce failed, or did not end in time.
    """

    def measure() -> dict[int, float]:
        group = make_group(store, rank, world_size, device, seconds)
        speeds = {}
        for size in sizes:
            load = torch.zeros(size // 4, device=device)
            durations = []
            for _ in range(_SPEED_ROUNDS + 1):
                begin = time.perf_counter()
                group.allreduce([load]).wait()
                _synchronize(device)
                durations.append(time.perf_counter() - begin)
            # The first all-reduce opens the connections and does not count.
            moved = 2 * (world_size - 1) / world_size * size
            speeds[size] = moved / median(durations[1:]) / MEGABYTE
        return speeds

    return within(seconds, measure)


def make_group(store: dist.Store, rank: int, world_size: int, device: torch.device, seconds: float) -> Any:
    """Builds a gloo or NCCL backend for some of the ranks.

    torch's public functions require that all ranks build each group. Its type stubs lack the collectives of backends.
    """
    # The limit is longer than any wait: when it expires, NCCL's watchdog kills the process before it can report.
    limit = timedelta(seconds=10 * seconds)
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, world_size, limit)
    torch.cuda.set_device(device)  # the current device is a setting of each thread
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, rank, world_size, options)


def _exchange(
    group: Any, peer: int, device: torch.device
) -> tuple[Callable[[torch.Tensor], None], Callable[[torch.Tensor], None]]:
    """Returns two functions: one sends a tensor to the other process, one receives a tensor from it."""

    def send(tensor: torch.Tensor) -> None:
        group.send([tensor], peer, 0).wait()
        _synchronize(device)

    def receive(tensor: torch.Tensor) -> None:
        group.recv([tensor], peer, 0).wait()
        _synchronize(device)

    return send, receive


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
