"""Masks against tensors written by hand (the hash is a table), slow references, and bounds for random draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from framework.data import masking
from framework.data.masking import MAX_LENGTH, MaskingFacts, Replacements, mask_tokens, num_masked
from framework.errors import ConfigError
from framework.random import mix

MASK_ID = 4
VOCABULARY = 50
"""Ids 0 to 4 are special, 5 to 9 are placeholders, 10 to 29 begin words, 30 to 49 continue one."""
KINDS = ("token", "whole_word", "span")


def facts() -> MaskingFacts:
    is_special = np.arange(VOCABULARY) < 5
    starts_word = np.arange(VOCABULARY) < 30
    return MaskingFacts(MASK_ID, np.arange(10, VOCABULARY), is_special, starts_word)


def random_batch(seed: int, num_sequences: int, length: int) -> tuple[np.ndarray, ...]:
    """Returns (input_ids, lengths, maskable, keys); sequences begin and end with a special token; few hold others."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(2, length + 1, num_sequences)
    input_ids = draws.integers(10, VOCABULARY, lengths.sum())
    input_ids[draws.random(len(input_ids)) < 0.03] = 3
    ends = np.cumsum(lengths)
    input_ids[ends - lengths], input_ids[ends - 1] = 2, 3
    return input_ids, lengths, input_ids >= 5, mix(seed, np.arange(num_sequences))


def test_counts_by_hand():
    assert num_masked(np.array([0, 1, 3, 10, 20, 30, 124]), 0.15).tolist() == [0, 1, 1, 2, 3, 5, 19]
    assert num_masked(np.array([5, 1]), 1.0).tolist() == [5, 1]


def test_counts_are_exact():
    """Includes halves such as 29 % of 50, which is 14.499999999999998 in floating point."""
    numbers = np.arange(5001)
    for percent in range(1, 101):
        exact = (percent * numbers + 50) // 100
        assert (num_masked(numbers, percent / 100) == np.minimum(np.maximum(exact, 1), numbers)).all()


def two_of_each(low: float, high: float) -> int:
    """Returns a hash whose lower and upper half are these shares of 2**32."""
    return int(low * 2**32) | int(high * 2**32) << 32


def four_of_each(*shares: float) -> int:
    return sum(int(share * 2**16) << 16 * number for number, share in enumerate(shares))


MASK, RANDOM, KEEP = 0.1, 0.85, 0.95
HASHES = {
    # Sequence 7: units are chosen in the order 3, 0, 2, 1, 4.
    (7, 0): two_of_each(0.5, 0.8),
    (7, 1): two_of_each(0.7, 0.1),
    (7, 2): two_of_each(0.9, 0),
    (7, MAX_LENGTH): 70,
    (70, 1): two_of_each(MASK, 0.9),
    (70, 2): two_of_each(KEEP, 0.2),
    (70, 3): two_of_each(RANDOM, 4.5 / 40),
    (70, 4): two_of_each(RANDOM, 6.5 / 40),
    (70, 5): two_of_each(KEEP, 0.3),
    # Its only stretch of words begins at position 1: spans of 2 and 3 words.
    (7, MAX_LENGTH + 1): 71,
    (71, 1): 72,
    (72, 0): four_of_each(0.3, 0.5, 0, 0),
    # Sequence 8: units are chosen in the order 1, 2, 3, 0.
    (8, 0): two_of_each(0.9, 0.2),
    (8, 1): two_of_each(0.3, 0.8),
    (8, MAX_LENGTH): 80,
    (80, 1): two_of_each(MASK, 0.9),
    (80, 3): two_of_each(RANDOM, 0),
    (80, 4): two_of_each(KEEP, 39.5 / 40),
    (80, 5): two_of_each(MASK, 20.5 / 40),
    # Stretches begin at positions 1 and 3: first spans of 1 and 2 words.
    (8, MAX_LENGTH + 1): 81,
    (81, 1): 82,
    (82, 0): four_of_each(0.1, 0, 0, 0),
    (81, 3): 83,
    (83, 0): four_of_each(0.3, 0, 0, 0),
}


@pytest.mark.parametrize(
    ("kind", "positions", "labels", "new_ids"),
    [
        # Two tokens each: positions 4 and 1, and positions 3 and 4.
        ("token", [1, 4, 10, 11], [10, 12, 14, 15], [2, 4, 30, 11, 16, 31, 3, 2, 13, 3, 10, 15, 32, 3]),
        # The word 10 30 fits exactly. After the word 14 one token remains, which 15 32 would exceed: it is skipped.
        ("whole_word", [1, 2, 10], [10, 30, 14], [2, 4, 30, 11, 12, 31, 3, 2, 13, 3, 10, 15, 32, 3]),
        # One span of three each, because nothing else was chosen: 10 30 11 all become the mask, 14 15 32 random words.
        ("span", [1, 2, 3, 10, 11, 12], [10, 30, 11, 14, 15, 32], [2, 4, 4, 4, 12, 31, 3, 2, 13, 3, 10, 49, 30, 3]),
    ],
)
def test_two_sequences_by_hand(monkeypatch, kind, positions, labels, new_ids):
    hashes = np.vectorize(lambda base, counter: HASHES.get((int(base), int(counter)), 0), otypes=[np.uint64])
    monkeypatch.setattr(masking, "mix", hashes)
    input_ids = np.array([2, 10, 30, 11, 12, 31, 3, 2, 13, 3, 14, 15, 32, 3])
    actual = mask_tokens(input_ids, np.array([7, 7]), input_ids >= 5, np.array([7, 8]), 0.4, facts(), kind)
    assert [part.tolist() for part in actual] == [positions, labels, new_ids]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.15, 0.3, 1.0]), st.sampled_from(KINDS), st.sampled_from([40, 600]))
def test_the_masked_tokens(seed, rate, kind, length):
    input_ids, lengths, maskable, keys = random_batch(seed, 20, length)
    before = input_ids.copy()
    positions, labels, new_ids = mask_tokens(input_ids, lengths, maskable, keys, rate, facts(), kind)
    assert (input_ids == before).all()
    assert (np.diff(positions) > 0).all() and maskable[positions].all()
    assert (labels == input_ids[positions]).all()
    hidden = np.zeros(len(input_ids), dtype=bool)
    hidden[positions] = True
    assert (new_ids[~hidden] == input_ids[~hidden]).all()
    assert np.isin(new_ids[positions], [MASK_ID, *range(10, VOCABULARY)]).all()
    if kind == "token" or rate == 1:
        sequence = np.repeat(np.arange(20), lengths)
        expected = num_masked(np.bincount(sequence[maskable], minlength=20), rate)
        assert (np.bincount(sequence[positions], minlength=20) == expected).all()


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 11), st.sampled_from(KINDS))
def test_masks_do_not_depend_on_the_batch(order, cut, kind):
    input_ids, lengths, maskable, keys = random_batch(5, 12, 300)
    starts = np.cumsum(lengths) - lengths

    def hidden_of(chosen: list[int]) -> list[tuple]:
        tokens = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in chosen])
        part = lengths[chosen]
        positions, labels, new_ids = mask_tokens(
            input_ids[tokens], part, maskable[tokens], keys[chosen], 0.3, facts(), kind
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


def slow_choice(sizes: list[int], key: int, num_tokens: int) -> set[int]:
    """Applies the rule of `mask_tokens` unit by unit; returns the chosen units of these sizes."""
    width = max(128, 1 << (len(sizes) - 1).bit_length()) if sizes else 0

    def rank(unit: int) -> int:
        two = int(mix(key, np.array([unit // 2]))[0])
        return ((two >> 32 if unit % 2 else two % 2**32) // width, unit)

    taken: set[int] = set()
    count = 0
    for unit in sorted(range(len(sizes)), key=rank):
        if num_tokens == 0 or count >= num_tokens:
            break
        over = count + sizes[unit] - num_tokens
        if over > 0 and taken and over >= num_tokens - count:
            break
        taken.add(unit)
        count += sizes[unit]
    return taken


SPAN_SHARES = np.cumsum([0.2 * 0.8**extra / (1 - 0.8**10) for extra in range(10)])


def slow_spans(words: list[list[int]], begin: int, key: int) -> list[list[int]]:
    """Divides the words of a stretch, each a list of positions, into spans of words."""
    stretch_key = int(mix(int(mix(key, np.array([2**16 + 1]))[0]), np.array([begin]))[0])
    spans: list[list[int]] = []
    draw = 0
    while words:
        four = int(mix(stretch_key, np.array([draw // 4]))[0])
        share = ((four >> 16 * (draw % 4)) % 2**16 + 0.5) / 2**16
        number = 1 + sum(share > bound for bound in SPAN_SHARES[:9])
        spans.append([position for word in words[:number] for position in word])
        words = words[number:]
        draw += 1
    return spans


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(1, 6), min_size=0, max_size=12), min_size=1, max_size=3), min_size=1, max_size=4
    ),
    st.integers(0, 10**6),
    st.sampled_from([0.15, 0.3, 0.6]),
    st.sampled_from(KINDS),
)
def test_units_are_chosen_as_by_a_slow_loop(sequences, seed, rate, kind):
    """Sequences are lists of stretches, each a list of words' sizes, with special tokens around."""
    input_ids: list[int] = []
    lengths = []
    expected: list[int] = []
    keys = mix(seed, np.arange(len(sequences)))
    for stretches, key in zip(sequences, keys.tolist(), strict=True):
        start = len(input_ids)
        input_ids.append(2)
        units: list[list[int]] = []
        for stretch in stretches:
            words = []
            begin = len(input_ids) - start
            for size in stretch:
                words.append(list(range(len(input_ids) - start, len(input_ids) - start + size)))
                input_ids += [10] + [30] * (size - 1)
            input_ids.append(3)
            if kind == "token":
                units += [[position] for word in words for position in word]
            else:
                units += words if kind == "whole_word" else slow_spans(words, begin, key)
        lengths.append(len(input_ids) - start)
        sizes = [len(unit) for unit in units]
        taken = slow_choice(sizes, key, int(num_masked(np.array([sum(sizes)]), rate)[0]))
        expected += sorted(start + position for unit in taken for position in units[unit])
    ids = np.array(input_ids)
    positions, _, _ = mask_tokens(ids, np.array(lengths), ids >= 5, keys, rate, facts(), kind)
    assert positions.tolist() == expected


def test_spans_of_one_word_are_whole_words(monkeypatch):
    """The number of draws then equals that of words."""
    monkeypatch.setattr(masking, "_SPAN_LENGTHS", np.ones(2**16, dtype=np.int64))
    input_ids, lengths, maskable, keys = random_batch(3, 30, 200)
    whole, spans = (
        mask_tokens(input_ids, lengths, maskable, keys, 0.3, facts(), kind)[0] for kind in ("whole_word", "span")
    )
    assert whole.tolist() == spans.tolist()


def test_the_starts_of_words():
    """A piece that continues a word begins one at the start of a sequence and after a special token."""
    input_ids = np.array([30, 31, 2, 32, 33, 10, 34, 35, 36])
    lengths = np.array([7, 2])
    words = [{0, 1}, {3, 4}, {5, 6}, {7, 8}]
    for seed in range(30):
        positions, _, _ = mask_tokens(
            input_ids, lengths, input_ids >= 5, mix(seed, np.arange(2)), 0.3, facts(), "whole_word"
        )
        hidden = set(positions.tolist())
        assert len(hidden) == 4 and all(word <= hidden or not word & hidden for word in words)


@pytest.mark.parametrize(("number", "length"), [(400, 100), (40, 600)])
def test_eighty_ten_ten(number, length):
    """Bounds are 5 standard deviations of the binomial."""
    input_ids = np.full(number * length, 15)
    lengths = np.full(number, length)
    keys = mix(1, np.arange(number))
    positions, _, new_ids = mask_tokens(input_ids, lengths, np.ones(len(input_ids), dtype=bool), keys, 0.5, facts())
    total = number * length // 2
    assert len(positions) == total
    new = new_ids[positions]
    # A random word equals the old one in 1 of 40 draws.
    other = (new != MASK_ID) & (new != 15)
    for what, share in ((new == MASK_ID, 0.8), (new == 15, 0.1 + 0.1 / 40), (other, 0.1 * 39 / 40)):
        assert abs(what.sum() - share * total) < 5 * np.sqrt(total * share * (1 - share))
    # Every ordinary word is drawn equally often, and nothing else is.
    counts = np.bincount(new[other], minlength=VOCABULARY)
    assert counts[:10].sum() == 0
    others = np.delete(counts[10:], 5)
    assert chi2.sf(((others - others.mean()) ** 2 / others.mean()).sum(), 38) > 1e-5
    # Each position is chosen equally often; the exact count reduces the variance.
    offsets = np.bincount(positions % length, minlength=length)
    assert chi2.sf(((offsets - number / 2) ** 2 / (number / 2)).sum(), length - 1) > 1e-5


def test_eighty_ten_ten_of_whole_spans():
    """With one word of three tokens between special tokens each word is a span, which is treated as a unit."""
    number, words = 300, 100
    input_ids = np.tile([2, 15, 40, 41], number * words)
    lengths = np.full(number, 4 * words)
    together = {}
    for kind in ("span", "whole_word"):
        positions, labels, new_ids = mask_tokens(
            input_ids, lengths, input_ids >= 5, mix(1, np.arange(number)), 0.5, facts(), kind
        )
        total = number * words // 2
        assert len(positions) == 3 * total
        new, old = new_ids[positions].reshape(total, 3), labels.reshape(total, 3)
        masks = (new == MASK_ID).sum(axis=1)
        kept = (new == old).all(axis=1)
        together[kind] = np.isin(masks, (0, 3)).mean()
        if kind == "span":
            for what, share in ((masks == 3, 0.8), (kept, 0.1), (~kept & (masks == 0), 0.1)):
                assert abs(what.sum() - share * total) < 5 * np.sqrt(total * share * (1 - share))
            words_drawn = new[~kept & (masks == 0)]
            # The words of one span are drawn independently: two are equal in 1 of 40 cases.
            assert abs((words_drawn[:, 0] == words_drawn[:, 1]).mean() - 1 / 40) < 5 * np.sqrt(
                1 / 40 / len(words_drawn)
            )
            assert set(words_drawn.ravel().tolist()) == set(range(10, VOCABULARY))
    assert together["span"] == 1
    # 0.8**3 + 0.2**3 = 0.52
    assert abs(together["whole_word"] - 0.52) < 5 * np.sqrt(0.52 * 0.48 / total)


def test_spans_have_geometric_lengths():
    """So few tokens are masked that masked stretches are single spans; a geometric distribution truncated at 10."""
    number, length = 20, 50_000
    input_ids = np.full(number * length, 15)
    positions, _, _ = mask_tokens(
        input_ids, np.full(number, length), input_ids > 0, mix(2, np.arange(number)), 0.004, facts(), "span"
    )
    assert abs(len(positions) - 0.004 * number * length) < number * 5
    ends = np.flatnonzero(np.diff(positions, append=-1) != 1)
    actual = np.diff(ends, prepend=-1)
    shares = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    counts = np.bincount(np.minimum(actual, 11), minlength=12)
    assert counts[11] < 0.02 * len(actual)
    expected = shares * counts[1:11].sum()
    assert chi2.sf(((counts[1:11] - expected) ** 2 / expected).sum(), 9) > 1e-3
    # The mean that Joshi et al. 2020 give (section 3.1), and the standard deviation of this distribution: 2.6.
    assert abs(actual[actual <= 10].mean() - 3.8) < 4 * 2.6 / np.sqrt(len(actual))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch_and_sequences_without_text(kind):
    none = np.zeros(0, dtype=np.int64)
    parts = mask_tokens(none, none, none.astype(bool), none.astype(np.uint64), 0.3, facts(), kind)
    assert [len(part) for part in parts] == [0, 0, 0]
    ids = np.array([2, 3, 2, 15, 3])
    keys = mix(0, np.arange(2))
    positions, labels, _ = mask_tokens(ids, np.array([2, 3]), ids >= 5, keys, 0.3, facts(), kind)
    assert positions.tolist() == [3] and labels.tolist() == [15]
    alone = mask_tokens(ids[:2], np.array([2]), ids[:2] >= 5, keys[:1], 0.3, facts(), kind)
    assert [part.tolist() for part in alone] == [[], [], [2, 3]]


def test_the_longest_sequence():
    ids = np.full(MAX_LENGTH, 15)
    assert len(mask_tokens(ids, np.array([MAX_LENGTH]), ids > 0, mix(0, np.arange(1)), 0.25, facts())[0]) == 2**14
    ids = np.full(70_000, 15)
    with pytest.raises(ValueError, match=r"has 70000 tokens\. Masking supports at most 65536"):
        mask_tokens(ids, np.array([70_000]), ids > 0, mix(0, np.arange(1)), 0.3, facts())


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_replacements(kind):
    """The chosen tokens do not depend on the shares. 0 and 1 are exact; 0.5 and 0.25 are within 5 standard errors."""
    input_ids, lengths, maskable, keys = random_batch(6, 60, 300)
    results = {
        shares: mask_tokens(input_ids, lengths, maskable, keys, 0.3, facts(), kind, Replacements(*shares))
        for shares in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.25))
    }
    positions = results[1.0, 0.0][0]
    assert all((each[0] == positions).all() for each in results.values())
    assert (results[1.0, 0.0][2][positions] == MASK_ID).all()
    assert (results[0.0, 1.0][2][positions] >= 10).all()
    assert (results[0.0, 1.0][2][positions] != input_ids[positions]).mean() > 0.9
    assert (results[0.0, 0.0][2] == input_ids).all()
    mixed = results[0.5, 0.25][2][positions]
    error = 5 * np.sqrt(0.25 * 10 / len(positions))  # spans of at most 10 words share a draw
    assert abs((mixed == MASK_ID).mean() - 0.5) < error
    assert abs((mixed == input_ids[positions]).mean() - 0.25 - 0.25 / 40) < error


@pytest.mark.parametrize("shares", [(0.9, 0.2), (-0.1, 0.1), (0.5, -0.1)])
def test_impossible_shares_are_named(shares):
    with pytest.raises(ConfigError, match="must not exceed 1 together"):
        Replacements(*shares)
