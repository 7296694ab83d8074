"""Ids of a streamed store, which stores none: a record batch is read and encoded again when its tokens are needed.

A record batch holds the documents of one row group of a shard. The most recently used ones stay in memory, and the next
ones are prefetched in the background.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from framework import ragged

_READERS = 4
"""Number of threads that read from the network."""


class StreamedTokens:
    """Token reader that fetches record batches and caches them (`framework.data.store.token_store.TokenReader`).

    Args:
        fetch: Function that returns the ids (tokens,) of a record batch by its number; called from several threads.
        batch_starts: (record batches,) int64 token offset of each.
        batch_tokens: (record batches,) int64 tokens of each.
        dtype: Data type of the ids.
        max_bytes: Memory limit of the cache. It always keeps at least the record batches of one call.
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
        self._reset()

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies ranges of tokens; see `TokenStore.gather`."""
        self._reset_after_fork()
        batches = np.searchsorted(self._batch_starts, starts, side="right") - 1
        ends = np.cumsum(lengths)
        result = np.empty(int(ends[-1]) if len(ends) else 0, dtype=self._dtype)
        numbers = np.unique(batches).tolist()
        # Request all record batches before waiting for the first.
        requests = [self._request(number) for number in numbers]
        for number, ids in zip(numbers, requests, strict=True):
            in_batch = batches == number
            sizes = lengths[in_batch]
            inner = ragged.offsets_within(sizes)
            offsets = np.repeat(starts[in_batch] - self._batch_starts[number], sizes) + inner
            result[np.repeat((ends - lengths)[in_batch], sizes) + inner] = ids.result()[offsets]
        self._evict_oldest(len(numbers))
        return result

    def read_ahead(self, start: int, stop: int) -> None:
        """Fetches the record batches of the range in the background."""
        self._reset_after_fork()
        first, last = np.searchsorted(self._batch_starts, [start, max(stop - 1, start)], side="right") - 1
        for number in range(int(first), int(last) + 1):
            self._request(number)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_pool", "_ids", "_pid")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="shards")
        self._ids: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._pid = os.getpid()

    def _reset_after_fork(self) -> None:
        # Threads do not survive the fork that starts a loader's workers.
        if self._pid != os.getpid():
            self._reset()

    def _request(self, number: int) -> Future[np.ndarray]:
        with self._lock:
            request = self._ids.get(number)
            if request is None or (request.done() and request.exception() is not None):
                self._ids[number] = request = self._pool.submit(self._fetch, number)
            self._ids.move_to_end(number)
        return request

    def _evict_oldest(self, needed: int) -> None:
        with self._lock:
            total = int(self._batch_bytes[list(self._ids)].sum())
            while total > self._max_bytes and len(self._ids) > needed:
                number, _ = self._ids.popitem(last=False)
                total -= int(self._batch_bytes[number])
