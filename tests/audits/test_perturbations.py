"""Edits of texts against results written by hand."""

import pytest

from framework.audits.chinese import to_full_width, to_half_width, to_traditional
from framework.audits.perturbations import (
    EDITS,
    case,
    contractions,
    edited,
    emoji,
    punctuation,
    traditional,
    typos,
    url,
    width,
)


def test_a_typo_swaps_two_inner_letters_of_one_word():
    assert typos("good", 0) == "good"  # the inner letters are equal
    assert typos("film", 0) == "flim"
    assert {typos("a fine film", draw) for draw in range(4)} == {"a fnie film", "a fine flim"}
    assert typos("a b 123", 5) == "a b 123"


def test_a_typo_in_chinese_swaps_two_characters():
    assert {typos("今天天气很好", draw) for draw in range(8)} == {"今天气天很好", "今天天很气好", "今天天气好很"}


def test_case_changes_all_letters():
    assert [case("Fine", draw) for draw in (0, 1)] == ["FINE", "fine"]
    assert case("123", 0) == "123"
    assert case("很好", 0) == "很好"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Fine film!", "Fine film"), ("Fine film", "Fine film."), ("很好", "很好。"), ("很好。", "很好"), ("...", "...")],
)
def test_final_marks_are_removed_or_added(text, expected):
    assert punctuation(text, 0) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is fine", "It's fine"),
        ("it isn't fine", "it is not fine"),
        ("I'm glad", "I am glad"),
        ("so i am glad", "so I'm glad"),
        ("Won’t do", "Will not do"),
        ("This island", "This island"),
    ],
)
def test_contractions_are_made_or_undone(text, expected):
    assert contractions(text, 0) == expected


def test_additions_keep_the_text():
    assert emoji("fine ", 7).startswith("fine ") and len(emoji("fine", 7)) > len("fine ")
    assert {url("fine", draw).split()[draw % 2] for draw in range(6)} == {"fine"}
    assert url("fine", 3) == url("fine", 3) != url("fine", 5)


def test_width_changes_chinese_texts_only():
    assert to_full_width("A1,很好") == "Ａ１，很好"
    assert to_half_width("Ａ１，很好") == "A1,很好"
    assert {width("A，很好", draw) for draw in (0, 1)} == {"Ａ，很好", "A,很好"}
    assert width("A, fine", 0) == "A, fine"


def test_traditional_characters_are_those_of_the_table():
    assert traditional("这个电影没有意义", 0) == "這個電影沒有意義"
    assert to_traditional("我们爱学习汉语，谢谢！") == "我們愛學習漢語，謝謝！"
    assert to_traditional("后面只有头发") == "后面只有頭发"  # characters with several forms stay


def test_an_edit_depends_on_the_seed_and_the_row_alone():
    text = "It is a fine film with many words"
    for name in EDITS:
        assert edited(name, text, 3, 8) == edited(name, text, 3, 8)
    assert len({edited("typos", text, 3, row) for row in range(20)}) > 3
    assert len({edited("typos", text, seed, 0) for seed in range(20)}) > 3
