"""Ids of a store that keeps none: a record batch is read and encoded again when its tokens are wanted.

A record batch holds the documents of one row group of a shard. The newest ones are kept in memory, and those that will
be wanted are read in the background.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from framework import ragged

_READERS = 4
"""Threads that wait for the network at once."""


class StreamedTokens:
    """Gives the ids of record batches that are fetched (`framework.data.store.token_store.TokenReader`).

    Args:
        fetch: Gives the ids (tokens,) of a record batch by its number; is called from threads.
        batch_starts: (record batches,) int64 token place at which each begins.
        batch_tokens: (record batches,) int64 tokens of each.
        dtype: Of the ids.
        max_bytes: Memory for ids; at least the record batches of one call are kept.
    """

    def __init__(
        self,
        fetch: Callable[[int], np.ndarray],
        batch_starts: np.ndarray,
        batch_tokens: np.ndarray,
        dtype: np.dtype,
        max_bytes: int,
    ) -> None:
        self._fetch = fetch
        self._batch_starts = batch_starts
        self._batch_bytes = batch_tokens * dtype.itemsize
        self._dtype = dtype
        self._max_bytes = max_bytes
        self._start_anew()

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `TokenStore.gather`."""
        self._forget_threads_of_the_parent()
        batches = np.searchsorted(self._batch_starts, starts, side="right") - 1
        ends = np.cumsum(lengths)
        result = np.empty(int(ends[-1]) if len(ends) else 0, dtype=self._dtype)
        wanted = np.unique(batches).tolist()
        # All are asked for before the first is waited for.
        arriving = [self._wanted(number) for number in wanted]
        for number, ids in zip(wanted, arriving, strict=True):
            here = batches == number
            sizes = lengths[here]
            inner = ragged.offsets_within(sizes)
            places = np.repeat(starts[here] - self._batch_starts[number], sizes) + inner
            result[np.repeat((ends - lengths)[here], sizes) + inner] = ids.result()[places]
        self._drop_oldest(len(wanted))
        return result

    def read_ahead(self, start: int, stop: int) -> None:
        """Fetches the record batches of the stretch in the background."""
        self._forget_threads_of_the_parent()
        first, last = np.searchsorted(self._batch_starts, [start, max(stop - 1, start)], side="right") - 1
        for number in range(int(first), int(last) + 1):
            self._wanted(number)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_pool", "_ids", "_pid")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._start_anew()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="shards")
        self._ids: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._pid = os.getpid()

    def _forget_threads_of_the_parent(self) -> None:
        # Threads do not survive the fork that makes a loader's workers.
        if self._pid != os.getpid():
            self._start_anew()

    def _wanted(self, number: int) -> Future[np.ndarray]:
        with self._lock:
            found = self._ids.get(number)
            if found is None or (found.done() and found.exception() is not None):
                self._ids[number] = found = self._pool.submit(self._fetch, number)
            self._ids.move_to_end(number)
        return found

    def _drop_oldest(self, needed: int) -> None:
        with self._lock:
            total = int(self._batch_bytes[list(self._ids)].sum())
            while total > self._max_bytes and len(self._ids) > needed:
                number, _ = self._ids.popitem(last=False)
                total -= int(self._batch_bytes[number])
