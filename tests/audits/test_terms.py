"""Tests of terms that name groups: matches, swaps and errors."""

import pytest

from framework.audits.terms import GroupTerms
from framework.errors import ConfigError

GENDER = GroupTerms({"female": ["she", "her", "Ms. Lee"], "male": ["he", "his", "Mr. Lee"]}, "terms.yaml")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("She sings.", ("female",)),
        ("The theatre sheds its shell.", ()),
        ("he and her", ("female", "male")),
        ("I saw Mr.  Lee today", ("male",)),
        ("I saw mr. lee today", ()),
        ("", ()),
    ],
)
def test_terms_are_whole_words_and_in_any_case_if_they_are_lower_case(text, groups):
    assert GENDER.groups_of(text) == groups


def test_terms_without_spaces_match_anywhere():
    terms = GroupTerms({"女": ["她", "女人"], "男": ["他", "男人"]}, "terms.yaml")
    assert terms.groups_of("我看见她了") == ("女",)
    assert terms.swapped("她是好女人", "女", "男") == "他是好男人"


def test_swaps_keep_capital_letters_and_other_words():
    assert GENDER.swapped("She took her hat. SHE left.", "female", "male") == "He took his hat. HE left."
    assert GENDER.swapped("He met Mr. Lee in the theatre", "male", "female") == "She met Ms. Lee in the theatre"
    assert GENDER.swapped("no term", "male", "female") == "no term"


def test_a_shorter_list_is_repeated():
    terms = GroupTerms({"a": ["one", "two", "three"], "b": ["uno", "due"]}, "terms.yaml")
    assert terms.swapped("one two three", "a", "b") == "uno due uno"


def test_the_longest_term_is_replaced():
    terms = GroupTerms({"a": ["old", "old man"], "b": ["young", "young man"]}, "terms.yaml")
    assert terms.swapped("an old man", "a", "b") == "an young man"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"a": ["one"]}, "terms.yaml has terms of 1 group. A comparison needs at least 2."),
        ({"a": ["one"], "b": []}, "the group 'b' has no terms"),
        ({"a": ["one"], "b": [" "]}, "the group 'b' has an empty term"),
        ({"a": ["one", "She"], "b": ["she"]}, "the term 'She' of the group 'b' overlaps with 'She' of 'a'"),
        ({"a": ["one", "she"], "b": ["she"]}, "the term 'she' of the group 'a' overlaps with 'she' of 'b'"),
        ({"a": ["man"], "b": ["old man"]}, "the term 'man' of the group 'a' overlaps with 'old man' of 'b'"),
        ({"a": ["男人"], "b": ["人"]}, "the term '人' of the group 'b' overlaps with '男人' of 'a'"),
    ],
)
def test_terms_that_cannot_be_compared_are_rejected(terms, message):
    with pytest.raises(ConfigError) as error:
        GroupTerms(terms, "terms.yaml")
    assert message in str(error.value)
