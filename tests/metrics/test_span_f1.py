"""Exact match and F1: the SQuAD script in torchmetrics; its rules for no answer, and Chinese, by hand."""

import numpy as np
import pytest
from torchmetrics.text import SQuAD

from framework.metrics.span_f1 import character_segments, score_answers, segment_f1, word_segments

WORDS = ["The", "an", "Bears", "bears,", "won", "(won)", "24–10", "24-10", "O'Neil", "ONeil", "a.", "of\tthe", "Zürich"]


def random_answer(random: np.random.Generator) -> str:
    # One word that remains after normalization, because the older script gives F1 0 if none does.
    words = [*random.choice(WORDS, size=random.integers(1, 5)), "won"]
    return " ".join(random.permutation(words))


def test_scores_equal_those_of_the_squad_script():
    random = np.random.default_rng(3)
    predictions = [random_answer(random) for _ in range(300)]
    truths = [[random_answer(random) for _ in range(random.integers(1, 4))] for _ in range(300)]
    # Half of them are variants of a true answer.
    predictions[::2] = [f"the {answers[-1].upper()}!" for answers in truths[::2]]
    expected = SQuAD()(
        [{"prediction_text": text, "id": str(index)} for index, text in enumerate(predictions)],
        [
            {"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": str(index)}
            for index, answers in enumerate(truths)
        ],
    )
    scores = score_answers(predictions, truths)
    assert scores["exact_match"] == pytest.approx(expected["exact_match"].item() / 100, abs=1e-6)
    assert scores["f1"] == pytest.approx(expected["f1"].item() / 100, abs=1e-6)
    assert 0.5 < scores["exact_match"] < scores["f1"] < 1
    assert scores.keys() == {"exact_match", "f1"}


def test_questions_without_answers_are_right_if_none_is_predicted():
    predictions = ["", "something", "", "in the north of France"]
    truths = [[], [], ["Paris"], ["northern France", "the north"]]
    # Right, wrong, wrong; "in north of france" has one word of "northern france", 2 * 1 / (4 + 2), and one of "north",
    # 2 * 1 / (4 + 1), which is better.
    f1 = {"no_answer_f1": 0.5, "has_answer_f1": 0.2, "f1": 1.4 / 4}
    exact = {"no_answer_exact_match": 0.5, "has_answer_exact_match": 0.0, "exact_match": 0.25}
    assert score_answers(predictions, truths) == pytest.approx(f1 | exact)


def test_true_answers_without_a_remaining_word_do_not_count():
    assert score_answers(["x", ""], [["the", "X"]] * 2) == {"exact_match": 0.5, "f1": 0.5}
    assert score_answers(["", "x"], [["the"], ["a", "an"]]) == {"exact_match": 0.5, "f1": 0.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Denver\nBroncos", ["denver", "broncos"]),
        ("an U.S.-led   a-team", ["usled", "ateam"]),
        ("«Über» – theater", ["«über»", "–", "theater"]),
        ("308分", ["308分"]),
        ("the", []),
    ],
)
def test_words(text, words):
    assert word_segments(text) == words


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("308分", ["308", "分"]),
        ("《黑豹》队，NFL Team", ["黑", "豹", "队", "nfl", "team"]),
        ("the 24.5亿（美元）", ["the", "245", "亿", "美", "元"]),
        ("\U00020000\u3400", ["\U00020000", "\u3400"]),
        ("。，", []),
    ],
)
def test_characters(text, characters):
    assert character_segments(text) == characters


def test_chinese_counts_characters():
    # Three characters of five are the three of the true answer: 2 * 3 / (5 + 3).
    assert score_answers(["卡罗来纳州"], [["卡罗来。"]], "characters") == {
        "exact_match": 0.0,
        "f1": pytest.approx(6 / 8),
    }
    assert score_answers(["卡罗来纳。"], [["卡罗来纳", "x"]], "characters") == {"exact_match": 1.0, "f1": 1.0}
    assert score_answers(["卡罗来纳州"], [["卡罗来"]], "words")["f1"] == 0.0


def test_a_segment_counts_as_often_as_both_have_it():
    # Common: a, a, b; 2 * 3 / (4 + 5).
    assert segment_f1(["a", "a", "b", "c"], ["a", "b", "a", "a", "d"]) == pytest.approx(2 / 3)
    assert (segment_f1([], []), segment_f1([], ["a"]), segment_f1(["a"], [])) == (1.0, 0.0, 0.0)
