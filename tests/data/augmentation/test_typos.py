"""Typing errors: each kind by hand, their rate, and their dependence on key, text and word."""

import numpy as np
import pytest

from framework.data.augmentation.rewriting import RewrittenSource
from framework.data.augmentation.typos import NEIGHBOURS, Typos, mistype
from framework.data.flat_source import FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.plan import StepPlan
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.random import key, mix
from tests.support.data.planned_items import by_item

WRONG_KEY, SWAPPED, MISSING, DOUBLED = 0.0, 0.25, 0.5, 0.75
BY_HAND = [
    (("Quick", WRONG_KEY, 0.0, 0.0), "Wuick"),
    (("Quick", WRONG_KEY, 0.99, 0.99), "Quicm"),
    (("über", WRONG_KEY, 0.0, 0.0), "üver"),
    (("北京", WRONG_KEY, 0.0, 0.0), "京北"),
    (("Quick", SWAPPED, 0.0, 0.0), "uQick"),
    (("Quick", SWAPPED, 0.99, 0.0), "Quikc"),
    (("Quick", MISSING, 0.0, 0.0), "uick"),
    (("北京", MISSING, 0.99, 0.0), "北"),
    (("Quick", DOUBLED, 0.99, 0.0), "Quickk"),
]


@pytest.mark.parametrize(("arguments", "expected"), BY_HAND)
def test_each_kind_by_hand(arguments: tuple, expected: str):
    assert mistype(*arguments) == expected


def test_neighbouring_keys_are_mutual_and_known():
    assert set(NEIGHBOURS["g"]) == set("fhtyvb") and set(NEIGHBOURS["q"]) == set("wa")
    assert all(letter in NEIGHBOURS[beside] for letter, letters in NEIGHBOURS.items() for beside in letters)


def test_the_share_of_words_and_the_texts_around_them():
    texts = ["one two, three! (four) 55 a I'm", "六七八九 ten"] * 500
    words_of = [["one", "two", "three", "four"], ["六七", "八九", "ten"]] * 500
    rewritten = Typos(0.2).rewrite(texts, mix(key(0), np.arange(1000)))
    changed = 0
    for text, words, after in zip(texts, words_of, rewritten, strict=True):
        changed += text != after
        if text != after and len(words) == 4:
            assert ", " in after and "! (" in after and ") 55 a I'm" in after
    # Of 3,500 words 700 get an error; 1 - 0.8^4 and 1 - 0.8^3 of the texts: 295 + 244, standard deviation 16. A swap of
    # equal letters ("three") changes nothing.
    assert 539 - 70 < changed < 539 + 60


def test_errors_follow_key_and_text_only():
    texts = ["the quick brown fox jumps over the lazy dog"] * 2 + ["the slow brown fox jumps over the lazy dog"]
    keys = mix(key(3), np.array([0, 0, 0]))
    first = Typos(0.5).rewrite(texts, keys)
    assert first[0] == first[1] != texts[0]
    assert Typos(0.5).rewrite(texts[::-1], keys) == first[::-1]
    assert len(set(Typos(0.5).rewrite(texts[:1] * 20, mix(key(3), np.arange(20))))) > 15
    assert Typos(0.5).rewrite([], np.zeros(0, dtype=np.uint64)) == []


def test_lengths_grow_within_the_bound_for_any_division_of_the_work(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "quick", "brown"]
    pieces = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *pieces]) + "\n")
    tokenizer = Tokenizer.from_folder(tmp_path)
    layout = lay_out(["quick brown"] * 32, None, tokenizer, 7, keeps_texts=True)
    flat = layout.source({"labels": FlatTarget(np.arange(32), "sequences")}, {}, 7)
    one, two = (
        StepPlan(RewrittenSource(flat, Typos(0.5), tokenizer, 1), 1, 16, budget, num_ranks)
        for budget, num_ranks in ((200, 1), (20, 2))
    )
    lengths = one.source.lengths(np.zeros(32, dtype=np.int64), np.arange(32))
    assert lengths.min() == 4 and lengths.max() == 7 == one.source.max_length
    for step in (0, 3):
        shared = {name: value for rank in range(2) for name, value in by_item(two, step, rank).items()}
        assert shared == by_item(one, step, 0) and len(shared) == 16


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_rate_is_checked(rate: float):
    with pytest.raises(ConfigError, match=rf"augmentation\.rate is {rate}\. It must be above 0 and below 1"):
        Typos(rate)
