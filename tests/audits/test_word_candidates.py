"""Words of texts, and the candidates that may replace them."""

import numpy as np

from framework.audits.word_candidates import Words, _encode, _usable


class Letters:
    """Tokenizer with one token per two letters of a word: `film` is `fi` and `lm`."""

    cls_id, sep_id, mask_id = 1, 2, 3

    def encode_with_offsets(self, texts):
        encoded = []
        for text in texts:
            spans = []
            for word, start in zip(Words.of(text).words, Words.of(text).starts, strict=True):
                spans += [(start + at, min(start + at + 2, start + len(word))) for at in range(0, len(word), 2)]
            ids = [ord(text[start]) for start, _ in spans]
            encoded.append((ids, np.array([s for s, _ in spans]), np.array([e for _, e in spans])))
        return encoded


def test_words_and_what_stands_between_them_make_the_text():
    words = Words.of(" It isn't  good: 很好!")
    assert words.words == ("It", "isn't", "good", "很", "好")
    assert words.text == " It isn't  good: 很好!"
    assert words.with_word(2, "bad").text == " It isn't  bad: 很好!"
    assert words.with_word(2, "").text == " It isn't  : 很好!"
    assert Words.of("...").words == () and Words.of("...").text == "..."


def test_candidates_are_other_whole_words_with_the_capitals_of_the_word():
    assert _usable("Good", ["good", "##ly", ".", "bad", "the", "bad", "fine", "New York"]) == ("Bad", "Fine")
    assert _usable("GOOD", ["bad"]) == ("BAD",)
    assert _usable("good", ["bad"]) == ("bad",)
    assert _usable("I'll", ["bad"]) == ("Bad",)


def test_words_of_one_token_share_a_sequence_and_longer_words_have_a_mask():
    (shared, several) = _encode(Words.of("go film not up"), Letters(), max_length=16)
    # `not` and `up` are function words.
    assert shared[0] == [0] and shared[1].positions.tolist() == [1]
    assert shared[1].input_ids.tolist() == [1, *map(ord, "gflntu"), 2]
    assert several[0] == [1] and several[1].positions.tolist() == [2]
    assert several[1].input_ids.tolist() == [1, ord("g"), 3, *map(ord, "ntu"), 2]


def test_words_beyond_the_longest_sequence_have_no_candidates():
    assert [places for places, _ in _encode(Words.of("go ab cd ef gh"), Letters(), max_length=5)] == [[0, 1, 2]]
    assert _encode(Words.of("the film"), Letters(), max_length=4) == []
