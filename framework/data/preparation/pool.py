"""Work on batches in processes of their own: results come in the order of the batches, few batches are in flight."""

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import Any, Protocol, TypeVar

from framework.machine import usable_cores

IN_FLIGHT = 2
"""Batches a worker may have before it, the one it works on among them."""
POOL_FROM = 4
"""With fewer batches than that a process takes longer to start than to work."""


class HasTexts(Protocol):
    """A batch: its texts go to the worker, the rest stays here."""

    @property
    def texts(self) -> Sequence[str]:
        """What is worked on."""


Batch = TypeVar("Batch", bound=HasTexts)
Result = TypeVar("Result")
Work = Callable[[Sequence[str]], Result]


def work_in_order(
    make_work: Callable[[], Work[Result]], batches: Iterable[Batch], num_workers: int | None
) -> Iterator[tuple[Batch, Result]]:
    """Streams (batch, result of the work on its texts) in the order of the batches.

    Args:
        make_work: Makes the work, once in each process that works; must be picklable.
        batches: Taken up as results are taken, at most `IN_FLIGHT` a worker ahead.
        num_workers: Processes; None: one for each core that this process may use; 0 or 1: the work is done here.

    Raises:
        BrokenProcessPool: A worker was killed (as the kernel does where memory is short).
    """
    remaining = iter(batches)
    num_workers = usable_cores() if num_workers is None else num_workers
    head = list(itertools.islice(remaining, POOL_FROM)) if num_workers > 1 else []
    if len(head) < POOL_FROM:
        work = make_work()
        for batch in itertools.chain(head, remaining):
            yield batch, work(batch.texts)
        return
    # Spawned, not forked: tokenizers and Arrow have threads, which a fork does not survive.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (make_work,))
    try:
        waiting: deque[tuple[Batch, Future[Result]]] = deque()
        for batch in itertools.chain(head, remaining):
            waiting.append((batch, pool.submit(_work_on, batch.texts)))
            if len(waiting) >= IN_FLIGHT * num_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_work: Work[Any] | None = None


def _start_worker(make_work: Callable[[], Work[Any]]) -> None:
    global _work
    # The main process answers Ctrl-C and then ends its workers; where it is killed itself, they end too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One process a core is enough.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work = make_work()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work_on(texts: Sequence[str]) -> Any:
    assert _work is not None
    return _work(texts)
