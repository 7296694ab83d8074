"""The swap of word pairs: case, word ends, words with several counterparts, Chinese, and refused files."""

from pathlib import Path

import pytest

from framework.config.resolvers import conf_folder
from framework.data.augmentation.word_pairs import WordPairs, parse_word_pairs, read_word_pairs
from framework.errors import ConfigError

PAIRS_FOLDER = conf_folder() / "augmentation" / "pairs"
ENGLISH = {
    "He said she is here.": "She said he is here.",
    "HE IS A MAN": "SHE IS A WOMAN",
    "A hero, not a heroine": "A heroine, not a hero",
    "the theme of these others": "the theme of these others",
    "he's the man's brother-in-law": "she's the woman's sister-in-law",
    "Mr. Smith and his wife": "Mrs. Smith and her husband",
    "She gave him her book.": "He gave her his book.",
    "I saw her yesterday and told her that.": "I saw him yesterday and told him that.",
    "I like her.": "I like him.",
    "a friend of his, and HIS own": "a friend of hers, and HER own",
    "the choice was hers": "the choice was his",
    "Everyone has his or  her reasons.": "Everyone has his or  her reasons.",
    "No man's land": "No man's land",
    "She likes herself": "He likes himself",
}
CHINESE = {
    "他说她的父亲在这里。": "她说他的母亲在这里。",
    "她们喜欢吉他，其他人不喜欢。": "他们喜欢吉他，其他人不喜欢。",
    "男女主角是他的女儿和儿子": "男女主角是她的儿子和女儿",
    "男朋友he女友": "女朋友he男友",
}


@pytest.fixture(scope="module")
def english() -> WordPairs:
    return read_word_pairs("gender_en.yaml", PAIRS_FOLDER)


@pytest.mark.parametrize("text", ENGLISH)
def test_english_words_are_swapped(text: str, english: WordPairs):
    assert english.swap(text) == ENGLISH[text]


@pytest.mark.parametrize("text", CHINESE)
def test_chinese_words_are_swapped(text: str):
    assert read_word_pairs("gender_zh.yaml", PAIRS_FOLDER).swap(text) == CHINESE[text]


@pytest.mark.parametrize("name", ["gender_en.yaml", "gender_zh.yaml"])
def test_two_swaps_restore_each_word_but_the_ambiguous_ones(name: str):
    pairs = read_word_pairs(name, PAIRS_FOLDER)
    one_way = {"his", "her", "him", "hers"}
    words = [word for word in pairs.counterparts if word not in one_way]
    assert len(words) > 60
    assert [pairs.swap(pairs.swap(word)) for word in words] == words


def test_words_beside_characters_of_chinese_are_words():
    pairs = parse_word_pairs("x", {"pairs": [["boss", "chief"], ["Mark", "Mary"], ["王", "李"]]})
    assert pairs.swap("他是boss吗, bossy Boss2 BOSS") == "他是chief吗, bossy Boss2 CHIEF"
    assert pairs.swap("Mark the mark, MARK") == "Mary the mark, MARK"
    assert pairs.swap("小王子王") == "小李子李"


def test_the_fingerprint_follows_the_words(english: WordPairs):
    one = parse_word_pairs("x", {"pairs": [["a", "b"]]})
    assert one.fingerprint == parse_word_pairs("y", {"pairs": [["a", "b"]]}).fingerprint
    assert len({each.fingerprint for each in (one, english, parse_word_pairs("x", {"pairs": [["a", "c"]]}))}) == 3


REFUSED = {
    "empty": ({"pairs": []}, r"^f\.yaml has no pairs \(it contains: pairs\)\. A file of pairs is a mapping"),
    "nothing": (None, r"^f\.yaml has no pairs \(it contains: NoneType\)"),
    "unknown_key": ({"pairs": [["a", "b"]], "par": 1}, r"it contains: pairs, par"),
    "overlapping": (
        {"pairs": [["a", "b"], ["c", "a"]]},
        r"f\.yaml: 'a' is in two entries\. A word has one counterpart",
    ),
    "overlapping_rule": ({"pairs": [["a", "b"]], "one_way": {"b": "d"}}, r"'b' is in two entries"),
    "single": ({"pairs": [["a"]]}, r"\['a'\] is no pair"),
    "same": ({"pairs": [["a", "a"]]}, r"\['a', 'a'\] is no pair"),
    "boolean": ({"pairs": [["yes", False]]}, r"pairs contains False\. It must be a word\..* need quotes"),
    "blank": ({"pairs": [["yes", " "]]}, r"pairs contains ' '"),
    "rule": ({"pairs": [["a", "b"]], "by_next_word": {"c": {"before_word": "d"}}}, r"by_next_word\.c is .* must have"),
    "mapping": ({"pairs": [["a", "b"]], "one_way": ["c"]}, r"one_way is \['c'\]\. It must be a mapping"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused(content: object, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_word_pairs("f.yaml", content)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"pairs is no\.yaml, which cannot be read .* one of gender_en\.yaml, gender"):
        read_word_pairs("no.yaml", PAIRS_FOLDER)
    (tmp_path / "bad.yaml").write_text("pairs: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml, which is not YAML"):
        read_word_pairs(str(tmp_path / "bad.yaml"))
