"""The effect of each edit on tokens, compared with plain loops over one text at a time."""

import numpy as np
import pytest

from framework.data.augmentation.edits import Delete, Replace, Swap, draws_of
from framework.data.flat_source import FlatTokens
from framework.errors import ConfigError
from framework.random import key, mix, uniform

CLS, SEP = 1, 2


def sequences(sizes: list[tuple[int, ...]]) -> tuple[FlatTokens, np.ndarray, np.ndarray]:
    """Returns [CLS] text [SEP] or [CLS] text [SEP] pair [SEP] of distinct words, their flags, and keys."""
    ids, lengths = [], []
    for texts in sizes:
        before = len(ids)
        ids.append(CLS)
        for size in texts:
            ids += [100 + len(ids) + index for index in range(size)] + [SEP]
        lengths.append(len(ids) - before)
    flat = np.array(ids, dtype=np.int32)
    tokens = FlatTokens(flat, np.arange(len(ids)), np.array(lengths), np.ones(len(sizes), dtype=np.int64))
    return tokens, flat > SEP, mix(key("test"), np.arange(len(sizes)))


SIZES = [(1,), (2, 1), (30,), (5, 40), (1, 1), (64,)] * 20


def texts_of_row(ids: np.ndarray) -> list[list[int]]:
    """Returns the texts between special tokens."""
    assert ids[0] == CLS and ids[-1] == SEP
    inner = " ".join(map(str, ids[1:-1]))
    return [[int(word) for word in text.split()] for text in inner.split(f" {SEP} ")]


def rows(tokens: FlatTokens) -> list[np.ndarray]:
    return np.split(tokens.input_ids, np.cumsum(tokens.lengths)[:-1])


def test_a_draw_depends_on_its_position():
    keys = mix(key("test"), np.arange(2))
    draws = draws_of(np.array([2, 3]), keys, -1)
    expected = [uniform(np.array(key_of(int(k), p))) for k, n in zip(keys, (2, 3), strict=True) for p in range(n)]
    np.testing.assert_array_equal(draws, expected)


def key_of(base: int, position: int) -> np.uint64:
    """Draws one number at a time."""
    return np.uint64(int(mix(int(mix(base, -1)), position)))


@pytest.mark.parametrize("rate", [0.1, 0.95])
def test_deletion_keeps_the_tokens_drawn_above_the_rate_and_never_an_empty_text(rate: float):
    tokens, is_editable, keys = sequences(SIZES)
    after = Delete(rate).edit(tokens, is_editable, keys, np.zeros(len(SIZES)))
    draws = np.split(draws_of(tokens.lengths, keys, -1), np.cumsum(tokens.lengths)[:-1])
    emptied = 0
    for before, ids, drawn in zip(rows(tokens), rows(after), draws, strict=True):
        by_word = dict(zip(before.tolist(), drawn, strict=True))
        for whole, left in zip(texts_of_row(before), texts_of_row(ids), strict=True):
            expected = [word for word in whole if by_word[word] >= rate]
            emptied += not expected
            assert left == (expected or [max(whole, key=lambda word: by_word[word])])
    assert emptied > 0 or rate < 0.5
    assert after.input_ids.tolist() == tokens.input_ids[after.token_indices].tolist(), "segments follow their tokens"
    num_words, num_left = (sum(ids > SEP) for ids in (tokens.input_ids, after.input_ids))
    # Binomial, 5 standard deviations; one word of each text always stays.
    assert abs(num_words - num_left - rate * num_words) < 5 * np.sqrt(num_words * rate * (1 - rate)) + 160


def test_swaps_move_the_chosen_tokens_within_their_text():
    tokens, is_editable, keys = sequences(SIZES)
    after = Swap(0.3).edit(tokens, is_editable, keys, np.zeros(len(SIZES)))
    chosen = np.split(draws_of(tokens.lengths, keys, -1) < 0.3, np.cumsum(tokens.lengths)[:-1])
    moved = 0
    for before, ids, drawn in zip(rows(tokens), rows(after), chosen, strict=True):
        assert (ids[~drawn] == before[~drawn]).all()
        for whole, now in zip(texts_of_row(before), texts_of_row(ids), strict=True):
            assert sorted(now) == sorted(whole)
            moved += sum(a != b for a, b in zip(whole, now, strict=True))
    num_words = sum(tokens.input_ids > SEP)
    assert 0.2 * num_words < moved < 0.33 * num_words
    assert after.lengths.tolist() == tokens.lengths.tolist()


def test_replacements_have_the_ids_of_the_variant():
    tokens, is_editable, keys = sequences([(2,), (1,)])
    replace = Replace(0.5, num_variants=2)
    replace.samples = np.stack([tokens.input_ids + 1000, tokens.input_ids + 2000])
    after = replace.edit(tokens, is_editable, keys, replace.variants(np.array([3, 4])))
    assert after.input_ids.tolist() == [
        *(tokens.input_ids[:4] + 2000),
        *(tokens.input_ids[4:] + 1000),
    ]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Delete(0.0), "augmentation.rate is 0.0"),
        (lambda: Swap(1.0), "augmentation.rate is 1.0"),
        (lambda: Replace(0.1, num_variants=0), "num_variants is 0"),
        (lambda: Replace(0.1, temperature=0.0), "temperature is 0.0"),
    ],
)
def test_numbers_out_of_range_are_rejected(build, message: str):
    with pytest.raises(ConfigError, match=message):
        build()
