"""Packing: every sequence once, no budget exceeded, the same shapes on every rank, and little unused space."""

import gzip
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from framework.data.planning.packing import Packing, budget_sizes, pack
from framework.errors import ConfigError
from framework.random import mix
from tests.support.data.chunks import chunks_of
from tests.support.real_data import needs_real_data, real_data


def shares(packing: Packing, num_ranks: int) -> list[list[list[int]]]:
    return [[slots.tolist() for slots in packing.of_rank(rank)] for rank in range(num_ranks)]


def test_sizes_are_sixteenths_that_hold_the_longest_sequence():
    assert budget_sizes(4096, 3000) == [3072, 3328, 3584, 3840, 4096]
    assert budget_sizes(4096, 1) == list(range(256, 4097, 256))
    assert budget_sizes(10, 8) == [8, 9, 10]
    assert budget_sizes(20, 20) == [20]


def test_six_sequences_by_hand():
    """26 tokens on two ranks: one micro-batch of 10 is too small for each; 10 and 8 are the smallest that suffice.

    Longest first: 8 and 7 go to the tens, 5 and 3 to the eights; 2 goes to a free room of 5, 1 to one of 3 beside 7.
    """
    packing = pack(np.array([2, 8, 3, 5, 7, 1]), [8, 9, 10], num_ranks=2, max_sequences=6)
    assert packing.budgets == (10, 8)
    assert shares(packing, 2) == [[[1], [3]], [[4, 5], [0, 2]]]


def test_a_step_that_fits_is_one_micro_batch_of_the_smallest_size():
    lengths = np.array([2, 4, 3])
    packing = pack(lengths, [4, 8, 9, 12], num_ranks=1, max_sequences=3)
    assert packing.budgets == (9,)
    assert shares(packing, 1) == [[[0, 1, 2]]]
    assert len(pack(lengths, [4, 8, 9, 12], num_ranks=1, max_sequences=2).budgets) == 2
    assert len(pack(lengths, [4, 8], num_ranks=1, max_sequences=3).budgets) == 2
    empty = pack(lengths[:0], [4, 8], num_ranks=1, max_sequences=3)
    assert empty.budgets == (4,)
    assert shares(empty, 1) == [[[]]]


def test_overfull_bins_exchange_sequences():
    """Longest first would give 5 + 4 and 5 + 3 + 3, which is above 10."""
    packing = pack(np.array([5, 5, 4, 3, 3]), budget_sizes(10, 5), num_ranks=1, max_sequences=5)
    assert packing.budgets == (10, 10)
    assert sorted(shares(packing, 1)[0]) == [[0, 1], [2, 3, 4]]


def test_the_last_micro_batch_is_as_small_as_possible():
    packing = pack(np.full(10, 10), budget_sizes(40, 10), num_ranks=1, max_sequences=10)
    assert packing.budgets == (40, 40, 20)
    assert [len(slots) for slots in packing.of_rank(0)] == [4, 4, 2]


def test_the_fullest_rank_has_the_largest_micro_batch():
    # Two micro-batches of each of three ranks: 5 and 9, 10 and 0, 8 and 8 tokens.
    packing = Packing((10, 10), np.array([0, 1, 2, 4, 5]))
    assert packing.fullest_rank(np.array([5, 9, 10, 8, 8])) == 1
    # Only the last rank has a sequence.
    assert Packing((10,), np.array([2])).fullest_rank(np.array([4])) == 2


def test_few_long_sequences_fill_micro_batches_in_pairs():
    lengths = np.array([90, 80, 70, 60, 50, 50, 40, 30, 20, 10])
    packing = pack(lengths, [100], num_ranks=1, max_sequences=10)
    assert packing.budgets == (100,) * 5
    assert [int(lengths[slots].sum()) for slots in packing.of_rank(0)] == [100] * 5


def test_a_rank_may_have_a_micro_batch_without_sequences():
    packing = pack(np.full(5, 10), [10], num_ranks=2, max_sequences=5)
    assert sorted([len(slots) for slots in rank] for rank in shares(packing, 2)) == [[1, 1, 0], [1, 1, 1]]


def test_a_step_without_sequences_has_one_small_micro_batch():
    packing = pack(np.zeros(0, dtype=np.int64), [6, 8], num_ranks=2, max_sequences=1)
    assert packing.budgets == (6,)
    assert shares(packing, 2) == [[[]], [[]]]


@settings(max_examples=300, deadline=None)
@given(
    max_length=st.integers(1, 60),
    draws=st.lists(st.integers(0, 1000), max_size=80),
    extra=st.one_of(st.just(0), st.integers(0, 300)),
    num_ranks=st.integers(1, 9),
    max_sequences=st.one_of(st.just(10**9), st.integers(1, 6)),
)
# Here an exchange, even one of several rows at once, would give a micro-batch a third sequence.
@example(max_length=26, draws=[7, 13, 24, 5], extra=3, num_ranks=2, max_sequences=2)
@example(max_length=28, draws=[0, 0, 0, 0, 3, 0], extra=29, num_ranks=2, max_sequences=2)
def test_every_sequence_is_packed_once_and_no_budget_is_exceeded(max_length, draws, extra, num_ranks, max_sequences):
    lengths = np.array([1 + draw % max_length for draw in draws], dtype=np.int64)
    budget = max_length + extra
    packing = pack(lengths, budget_sizes(budget, max_length), num_ranks, max_sequences)
    *first, last = packing.budgets
    assert set(first) <= {budget}
    assert max_length <= last <= budget
    assert last in {-(-budget * part // 16) for part in range(1, 17)}
    ranks = shares(packing, num_ranks)
    assert sorted(slot for rank in ranks for slots in rank for slot in slots) == list(range(len(lengths)))
    for rank in ranks:
        for slots, most in zip(rank, packing.budgets, strict=True):
            assert slots == sorted(slots)
            assert lengths[slots].sum() <= most
            assert len(slots) <= max_sequences


def text_like(seed: int, count: int, longest: int) -> np.ndarray:
    """Returns many short lengths, and many that were truncated to the longest."""
    return np.minimum(np.random.default_rng(seed).geometric(4 / longest, size=count) + 8, longest)


@pytest.mark.parametrize(("num_ranks", "count"), [(2, 64), (2, 512), (8, 512), (64, 4096), (500, 40_000)])
def test_ranks_have_equal_numbers_of_tokens(num_ranks, count):
    lengths = text_like(0, count, 512)
    packing = pack(lengths, budget_sizes(4096, 512), num_ranks, count)
    tokens = np.bincount(packing.assignment // len(packing.budgets), lengths, num_ranks)
    assert tokens.max() / tokens.min() < 1.02


def test_micro_batches_that_differ_leave_ranks_even():
    """Each sequence fills a micro-batch: of 20 to 11 tokens, five go to each of two ranks."""
    lengths = np.arange(20, 10, -1)
    packing = pack(lengths, [20], num_ranks=2, max_sequences=10)
    tokens = np.bincount(packing.assignment // 5, lengths, 2)
    assert sorted(tokens.tolist()) == [77, 78]


def best_fit(lengths: np.ndarray, budget: int) -> int:
    """Returns the number of micro-batches that best fit, longest first, needs."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda number: rooms[number])] -= length
        else:
            rooms.append(budget - length)
    return len(rooms)


def spread_widely(draws: np.random.Generator) -> np.ndarray:
    return np.minimum(np.exp(draws.normal(5.4, 0.65, 100)).astype(int) + 8, 512)


def mostly_long(draws: np.random.Generator) -> np.ndarray:
    return np.maximum(513 - draws.geometric(1 / 120, 100), 8)


@pytest.mark.parametrize(
    ("draw_lengths", "budget", "share"),
    [(spread_widely, 512, 1.02), (spread_widely, 2048, 1.0), (mostly_long, 1024, 0.995), (mostly_long, 2048, 1.0)],
)
def test_few_long_sequences_need_about_as_many_micro_batches_as_best_fit_or_fewer(draw_lengths, budget, share):
    ours = theirs = 0
    for seed in range(20):
        lengths = draw_lengths(np.random.default_rng(seed))
        ours += len(pack(lengths, [budget], 1, 100).budgets)
        theirs += best_fit(lengths, budget)
    assert ours <= share * theirs


def wikitext_sentences(whole_articles: bool) -> list[list[int]]:
    """Returns the words in each sentence of each document of WikiText, which separates sentences by one mark."""
    files = [real_data(f"pretrain/wikitext2_{split}.txt.gz") for split in ("valid", "test")]
    text = "".join(gzip.decompress(file.read_bytes()).decode() for file in files)
    documents = re.split(r"(?m)^ = [^=\n]+ = *$" if whole_articles else r"\n\s*\n", text)
    split = [[len(sentence.split()) for sentence in re.split(r" (?<=[.!?] )", document)] for document in documents]
    return [[length for length in document if length] for document in split if any(document)]


@needs_real_data
@pytest.mark.parametrize(
    ("sequence_length", "whole_articles", "pairs", "budget"),
    [(128, True, False, 2048), (128, False, True, 1024), (512, True, False, 8192), (1024, False, True, 8192)],
)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_with_eight_or_more_micro_batches_real_text_fills_99_percent(
    sequence_length, whole_articles, pairs, budget, num_ranks
):
    documents = wikitext_sentences(whole_articles)
    chunks = chunks_of(documents, sequence_length - 3, pairs)
    draws = np.random.default_rng(0)
    mean = sum(map(sum, documents)) / len(chunks) + 3
    real = room = 0
    for epoch in range(24):
        count = int(draws.uniform(7.5, 10) * num_ranks * budget / mean)
        indices = draws.integers(0, len(chunks), count)
        drawn = chunks.draw_pairs(mix(epoch, indices), indices) if pairs else chunks.single_segments(indices)
        lengths = drawn.lengths.sum(axis=1) + 3
        packing = pack(lengths, budget_sizes(budget, sequence_length), num_ranks, count)
        if len(packing.budgets) >= 8:
            real += int(lengths.sum())
            room += sum(packing.budgets) * num_ranks
    assert real > 50 * budget
    assert real / room >= 0.99


def test_a_sequence_above_the_smallest_size_is_rejected():
    with pytest.raises(ConfigError, match="a sequence has 11 tokens, but a micro-batch may be as small as 9 tokens"):
        pack(np.array([3, 11]), [9, 12], 1, 2)
