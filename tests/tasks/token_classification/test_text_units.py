"""Units of a text: by hand, and words compared with BERT's own pipeline in the tokenizers library."""

import pytest
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from framework.tasks.token_classification.text_units import split_units

TEXT = "Ünder 3.5% — @Ann's 北京大学\u3000iPhone👍🏽 x_y\t\n"


def test_words_by_hand():
    words = [
        "Ünder",
        "3",
        ".",
        "5",
        "%",
        "—",
        "@",
        "Ann",
        "'",
        "s",
        "北",
        "京",
        "大",
        "学",
        "iPhone👍🏽",
        "x",
        "_",
        "y",
    ]
    assert [unit.text for unit in split_units(TEXT, "words")] == words


def test_words_are_those_of_the_vocabulary_of_bert():
    """Every assigned character of the first planes between two letters: is it separated or not."""
    normalizer = BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False)
    for first in (0x20, 0x3000, 0x4DB0, 0x9FF0, 0xAC00, 0xF900, 0x20000, 0x2A6D0, 0x2F800):
        for code in range(first, first + 0x200):
            text = f"a{chr(code)}b"
            expected = [word for word, _ in BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))]
            assert [unit.text for unit in split_units(text, "words")] == expected, hex(code)


def test_white_space_and_characters_by_hand():
    assert [unit.text for unit in split_units(TEXT, "white_space")] == TEXT.split()
    assert [unit.text for unit in split_units(TEXT, "characters")] == [each for each in TEXT if not each.isspace()]


@pytest.mark.parametrize("units", ["words", "white_space", "characters"])
def test_offsets_are_those_of_the_text_and_cover_it(units):
    parts = split_units(TEXT, units)
    assert all(TEXT[start:stop] == text for text, start, stop in parts)
    covered = [position for part in parts for position in range(part.start, part.stop)]
    assert covered == [position for position, each in enumerate(TEXT) if not each.isspace()]
    assert split_units("", units) == split_units(" \n", units) == []
