"""Processes batches in worker processes, with results in the order of the batches and few batches in flight."""

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
"""Largest number of submitted batches per worker, including the one in progress."""
POOL_FROM = 4
"""Smallest number of batches for which workers are started; with fewer, starting them takes longer than the work."""


class HasTexts(Protocol):
    """Batch of which only the texts are sent to a worker."""

    @property
    def texts(self) -> Sequence[str]:
        """Returns the texts to process."""


Batch = TypeVar("Batch", bound=HasTexts)
Result = TypeVar("Result")
Work = Callable[[Sequence[str]], Result]


def work_in_order(
    make_work: Callable[[], Work[Result]], batches: Iterable[Batch], num_workers: int | None
) -> Iterator[tuple[Batch, Result]]:
    """Streams (batch, result of the work on its texts) in the order of the batches.

    Args:
        make_work: Function that builds the work function, called once in each process; must be picklable.
        batches: Batches, read at most `IN_FLIGHT` per worker ahead of the consumed results.
        num_workers: Number of worker processes; None: one per core that this process may use; 0 or 1: this process does
            the work.

    Raises:
        BrokenProcessPool: A worker was killed, for example by the kernel when memory was short.
    """
    remaining = iter(batches)
    num_workers = usable_cores() if num_workers is None else num_workers
    head = list(itertools.islice(remaining, POOL_FROM)) if num_workers > 1 else []
    if len(head) < POOL_FROM:
        work = make_work()
        for batch in itertools.chain(head, remaining):
            yield batch, work(batch.texts)
        return
    # Spawn instead of fork: the threads of tokenizers and Arrow do not survive a fork.
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
    # The main process handles Ctrl-C and then ends its workers. If it is killed, the workers end too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # There is one process per core already.
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
