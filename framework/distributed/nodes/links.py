"""How fast the links between nodes are, and how far apart their clocks: measured between two, then between all.

A link can be dead in ways that no library notices in time, so each measurement has a thread of its own, which is left
behind where it hangs.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from framework.errors import DistributedError

T = TypeVar("T")

MEGABYTE = 1_000_000
LATE = "no answer within"
_CLOCK_ROUNDS = 5
_SPEED_ROUNDS = 3


@dataclass(frozen=True)
class Link:
    """What was measured between two nodes.

    Attributes:
        speed: MB/s, of the fastest of three times there and back; None: it is dead.
        clock: How many seconds the clock of the second is ahead; None: it is dead.
        why: It is dead; None: it is not.
    """

    speed: float | None
    clock: float | None
    why: str | None = None


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Each two of `count` players once, in as few rounds as can be; in a round nobody plays twice (circle method)."""
    seats: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    plan = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        plan.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return plan


def within(seconds: float, action: Callable[[], T]) -> T:
    """The result of an action that may hang.

    Args:
        seconds: How long to wait for it.
        action: Runs in a thread of its own.

    Raises:
        DistributedError: It failed, or had not ended in time.
    """
    results: list[T] = []
    errors: list[RuntimeError] = []

    def run() -> None:
        try:
            results.append(action())
        except RuntimeError as error:  # what gloo and NCCL raise
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
    store: dist.Store, place: int, device: torch.device, num_bytes: int, seconds: float, clock: Callable[[], float]
) -> Link:
    """Measures the link between two processes, both of which must call.

    Args:
        store: Of these two only, on a connection that nobody else uses: a thread that hangs keeps it.
        place: 0 or 1; what process 0 gets is the result.
        device: Of what is sent.
        num_bytes: Sent there, and back.
        seconds: How long to wait.
        clock: Tells the time of this node, in seconds.
    """

    def measure() -> Link:
        group = make_group(store, place, 2, device, seconds)
        send, receive = _exchange(group, 1 - place, device)
        differences = []
        stamp = torch.zeros(1, dtype=torch.float64, device=device)
        for _ in range(_CLOCK_ROUNDS):
            if place == 0:
                begin = clock()
                send(stamp)
                receive(stamp)
                end = clock()
                # The shortest way is the one that knows best (RFC 5905, section 10).
                differences.append((end - begin, stamp.item() - (begin + end) / 2))
            else:
                receive(stamp)
                send(stamp.fill_(clock()))
        load = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        durations = []
        for _ in range(_SPEED_ROUNDS):
            begin = time.perf_counter()
            for step in (send, receive) if place == 0 else (receive, send):
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
    """Measures all-reduces over all ranks, each of which must call.

    Args:
        store: Of all of them, on a connection that nobody else uses.
        rank: Of this process.
        world_size: Of all.
        device: Of what is reduced.
        sizes: Bytes.
        seconds: How long to wait.

    Returns:
        For each size MB/s over the link of one rank: 2 (n - 1) / n of the bytes in the time that an all-reduce took
        (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms, section 3). Median of three.

    Raises:
        DistributedError: It failed, or had not ended in time.
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
            # The first one connects.
            moved = 2 * (world_size - 1) / world_size * size
            speeds[size] = moved / median(durations[1:]) / MEGABYTE
        return speeds

    return within(seconds, measure)


def make_group(store: dist.Store, rank: int, world_size: int, device: torch.device, seconds: float) -> Any:
    """A backend of its own, gloo or NCCL, beside which others can be made by only some of the ranks.

    torch's public functions want all ranks to make each group. Its stubs know neither backend's collectives.
    """
    # Longer than anyone waits: at its end NCCL's watchdog ends the process, which has something to tell.
    limit = timedelta(seconds=10 * seconds)
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, world_size, limit)
    torch.cuda.set_device(device)  # of this thread
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, rank, world_size, options)


def _exchange(
    group: Any, peer: int, device: torch.device
) -> tuple[Callable[[torch.Tensor], None], Callable[[torch.Tensor], None]]:
    """To send a tensor to the other process, and to receive one."""

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
