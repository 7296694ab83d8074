from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.masking import MaskingFacts, mask_tokens, num_masked
from framework.random import mix

MASK_ID = 4
VOCABULARY = 50
"""Ids 0 to 4 are special, 5 to 9 are placeholders, 10 to 29 begin words, 30 to 49 go on with one."""


def facts() -> MaskingFacts:
    is_special = np.arange(VOCABULARY) < 5
    starts_word = np.arange(VOCABULARY) < 30
    return MaskingFacts(MASK_ID, np.arange(10, VOCABULARY), is_special, starts_word)


def random_batch(seed: int, num_sequences: int, length: int) -> tuple[np.ndarray, ...]:
    """(input_ids, lengths, maskable, keys); each sequence begins and ends with a special token."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(2, length + 1, num_sequences)
    input_ids = draws.integers(10, VOCABULARY, lengths.sum())
    ends = np.cumsum(lengths)
    input_ids[ends - lengths], input_ids[ends - 1] = 2, 3
    return input_ids, lengths, input_ids >= 5, mix(seed, np.arange(num_sequences))


def test_counts_by_hand():
    assert num_masked(np.array([0, 1, 3, 10, 20, 30, 124]), 0.15).tolist() == [0, 1, 1, 2, 3, 5, 19]
    assert num_masked(np.array([5, 1]), 1.0).tolist() == [5, 1]


@given(st.integers(0, 5000), st.integers(1, 100))
def test_counts_are_exact(number, percent):
    exact = int(Fraction(percent * number, 100) + Fraction(1, 2))
    assert num_masked(np.array([number]), percent / 100)[0] == (min(max(exact, 1), number))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.15, 0.3, 1.0]), st.booleans())
def test_what_is_hidden(seed, rate, whole_word):
    input_ids, lengths, maskable, keys = random_batch(seed, 20, 40)
    before = input_ids.copy()
    positions, labels, new_ids = mask_tokens(input_ids, lengths, maskable, keys, rate, facts(), whole_word)
    assert (input_ids == before).all()
    assert (np.diff(positions) > 0).all() and maskable[positions].all()
    assert (labels == input_ids[positions]).all()
    hidden = np.zeros(len(input_ids), dtype=bool)
    hidden[positions] = True
    assert (new_ids[~hidden] == input_ids[~hidden]).all()
    assert np.isin(new_ids[positions], [MASK_ID, *range(10, VOCABULARY)]).all()
    if not whole_word:
        sequence = np.repeat(np.arange(20), lengths)
        wanted = num_masked(np.bincount(sequence[maskable], minlength=20), rate)
        assert (np.bincount(sequence[positions], minlength=20) == wanted).all()


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 11), st.booleans())
def test_masks_do_not_depend_on_the_batch(order, cut, whole_word):
    input_ids, lengths, maskable, keys = random_batch(5, 12, 30)
    starts = np.cumsum(lengths) - lengths

    def hidden_of(chosen: list[int]) -> list[tuple]:
        tokens = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in chosen])
        part = lengths[chosen]
        positions, labels, new_ids = mask_tokens(
            input_ids[tokens], part, maskable[tokens], keys[chosen], 0.3, facts(), whole_word
        )
        first = np.cumsum(part) - part
        return [
            (
                (positions[(positions >= begin) & (positions < begin + size)] - begin).tolist(),
                labels[(positions >= begin) & (positions < begin + size)].tolist(),
                new_ids[begin : begin + size].tolist(),
            )
            for begin, size in zip(first, part, strict=True)
        ]

    expected = hidden_of(list(range(12)))
    got = hidden_of(order[:cut]) + hidden_of(order[cut:])
    assert got == [expected[one] for one in order]


def test_eighty_ten_ten():
    """Bounds are 5 standard deviations of the binomial."""
    number, length = 400, 100
    input_ids = np.full(number * length, 15)
    lengths = np.full(number, length)
    keys = mix(1, np.arange(number))
    positions, _, new_ids = mask_tokens(input_ids, lengths, np.ones(len(input_ids), dtype=bool), keys, 0.5, facts())
    total = number * length // 2
    assert len(positions) == total
    new = new_ids[positions]
    # A random word is the old one once in 40.
    other = (new != MASK_ID) & (new != 15)
    for what, share in ((new == MASK_ID, 0.8), (new == 15, 0.1 + 0.1 / 40), (other, 0.1 * 39 / 40)):
        assert abs(what.sum() - share * total) < 5 * np.sqrt(total * share * (1 - share))
    # Every ordinary word is drawn, each as often (chi-square, 38 degrees, p = 1e-5), and nothing else is.
    counts = np.bincount(new[other], minlength=VOCABULARY)
    assert counts[:10].sum() == 0
    others = np.delete(counts[10:], 5)
    assert ((others - others.mean()) ** 2 / others.mean()).sum() < 87
    # Each place is chosen as often (99 degrees, p = 1e-5; the exact count makes it narrower).
    places = np.bincount(positions % length, minlength=length)
    assert ((places - number / 2) ** 2 / (number / 2)).sum() < 174


def slow_whole_words(words: list[int], hashes: list[int], wanted: int) -> set[int]:
    """The rule of `mask_tokens`, word by word: words are given by their sizes."""
    taken: set[int] = set()
    count = 0
    for word in sorted(range(len(words)), key=lambda one: hashes[one]):
        if wanted == 0 or count >= wanted:
            break
        over = count + words[word] - wanted
        if over > 0 and taken and over >= wanted - count:
            break
        taken.add(word)
        count += words[word]
    return taken


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=0, max_size=10), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.sampled_from([0.15, 0.3, 0.6]),
)
def test_whole_words(sequences, seed, rate):
    texts = [[part for size in words for part in [10] + [30] * (size - 1)] for words in sequences]
    input_ids = np.concatenate([[2, *text, 3] for text in texts])
    lengths = np.array([sum(words) + 2 for words in sequences])
    keys = mix(seed, np.arange(len(sequences)))
    positions, _, _ = mask_tokens(input_ids, lengths, input_ids >= 5, keys, rate, facts(), whole_word=True)
    expected: list[int] = []
    start = 0
    for words, length, key in zip(sequences, lengths, keys, strict=True):
        first = np.cumsum([1, *words])[:-1]
        # The order of words is that of the upper 31 bits of the hash of their first token's place.
        hashes = (mix(key, first) >> np.uint64(33)).tolist()
        wanted = int(num_masked(np.array([sum(words)]), rate)[0])
        taken = slow_whole_words(words, hashes, wanted)
        expected += [start + int(first[word]) + part for word in sorted(taken) for part in range(words[word])]
        start += int(length)
    assert positions.tolist() == expected


def test_where_words_begin():
    """A piece that continues a word begins one at the start of a sequence and after a special token."""
    input_ids = np.array([30, 31, 2, 32, 33, 10, 34, 35, 36])
    lengths = np.array([7, 2])
    words = [{0, 1}, {3, 4}, {5, 6}, {7, 8}]
    for seed in range(30):
        positions, _, _ = mask_tokens(input_ids, lengths, input_ids >= 5, mix(seed, np.arange(2)), 0.3, facts(), True)
        hidden = set(positions.tolist())
        assert len(hidden) == 4 and all(word <= hidden or not word & hidden for word in words)


def test_empty_batch_and_sequences_without_text():
    none = np.zeros(0, dtype=np.int64)
    for whole_word in (False, True):
        parts = mask_tokens(none, none, none.astype(bool), none.astype(np.uint64), 0.3, facts(), whole_word)
        assert [len(part) for part in parts] == [0, 0, 0]
        ids = np.array([2, 3, 2, 15, 3])
        keys = mix(0, np.arange(2))
        positions, labels, _ = mask_tokens(ids, np.array([2, 3]), ids >= 5, keys, 0.3, facts(), whole_word)
        assert positions.tolist() == [3] and labels.tolist() == [15]


def test_limits():
    ids = np.full(2**16 + 1, 15)
    with pytest.raises(ValueError, match="at most 65536 sequences"):
        mask_tokens(ids, np.array([len(ids)]), ids > 0, mix(0, np.arange(1)), 0.3, facts())
    with pytest.raises(ValueError, match="at most 65536 sequences"):
        mask_tokens(ids, np.ones_like(ids), ids > 0, mix(0, np.arange(len(ids))), 0.3, facts())
