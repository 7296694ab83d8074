import multiprocessing
import pickle

import numpy as np
import pytest

from framework.data.store.streamed_tokens import StreamedTokens
from framework.errors import DataError

SIZES = np.array([5, 3, 7, 4])
STARTS = np.array([0, 5, 8, 15])
IDS = np.arange(100, 119)


class Shards:
    """Returns record batches by number and records the fetched ones."""

    def __init__(self, failures: int = 0) -> None:
        self.fetched: list[int] = []
        self.failures = failures

    def __call__(self, number: int) -> np.ndarray:
        self.fetched.append(number)
        if self.failures:
            self.failures -= 1
            raise DataError("the shard is away")
        return IDS[STARTS[number] : STARTS[number] + SIZES[number]].astype(np.uint16)


def tokens_of(shards: Shards, max_bytes: int = 10**6) -> StreamedTokens:
    return StreamedTokens(shards, STARTS, SIZES, np.dtype(np.uint16), max_bytes)


def test_ranges_come_from_their_batches_in_the_requested_order():
    starts, lengths = np.array([16, 1, 9, 0, 5, 18]), np.array([2, 3, 4, 1, 0, 1])
    ids = tokens_of(Shards()).gather(starts, lengths)
    assert ids.dtype == np.uint16
    assert ids.tolist() == [116, 117, 101, 102, 103, 109, 110, 111, 112, 100, 118]
    assert tokens_of(Shards()).gather(starts[:0], lengths[:0]).tolist() == []


def test_cached_batches_are_not_fetched_again_and_the_oldest_is_dropped_first():
    shards = Shards()
    # 11 ids of two bytes: batches 0 and 1 and no more, or 2 and 3.
    tokens = tokens_of(shards, max_bytes=22)
    for index in (0, 5, 1, 6):
        tokens.gather(np.array([index]), np.array([1]))
    assert shards.fetched == [0, 1]
    tokens.gather(np.array([8]), np.array([1]))  # 2 is added, 0 is dropped (it was used before 1)
    tokens.gather(np.array([5]), np.array([1]))
    assert shards.fetched == [0, 1, 2]
    tokens.gather(np.array([0]), np.array([1]))
    assert shards.fetched == [0, 1, 2, 0]


def test_reading_ahead_fetches_the_batches_of_the_range():
    shards = Shards()
    tokens = tokens_of(shards)
    tokens.read_ahead(6, 15)
    assert tokens.gather(np.array([7, 14]), np.array([1, 1])).tolist() == [107, 114]
    assert sorted(shards.fetched) == [1, 2]


def test_a_failure_is_raised_and_not_cached():
    shards = Shards(failures=1)
    tokens = tokens_of(shards)
    with pytest.raises(DataError, match="is away"):
        tokens.gather(np.array([0]), np.array([2]))
    assert tokens.gather(np.array([0]), np.array([2])).tolist() == [100, 101]


def _child(tokens: StreamedTokens, answers) -> None:
    answers.put(tokens.gather(np.array([4, 15]), np.array([1, 2])).tolist())


def test_a_loader_worker_fetches_for_itself():
    tokens = tokens_of(Shards())
    tokens.gather(np.array([4]), np.array([1]))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_child, args=(tokens, answers))
    child.start()
    assert answers.get(timeout=60) == [104, 115, 116]
    child.join()
    assert child.exitcode == 0
    assert pickle.loads(pickle.dumps(tokens)).gather(np.array([8]), np.array([2])).tolist() == [108, 109]
