"""Personal data is found by format and checksum; look-alikes, and texts without it, are left alone."""

import sys

import pytest

from framework.data.personal_data.kinds import KINDS, Detection, Find
from framework.data.personal_data.masks import masked
from framework.data.personal_data.names import Names
from framework.data.personal_data.prefilter import plain, traces
from framework.errors import ConfigError
from tests.support.data.personal_items import FORMS, LOCALES, NAMES, planted

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")

from framework.data.personal_data.finder import Finder

ALL = ("US", "GB", "CN", "DE", "FR", "ES", "BR", "IN", "JP", "KR", "PL")


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder(Detection(regions=ALL))


def found(finder: Finder, text: str) -> list[tuple[str, str]]:
    return [(find.kind, text[find.start : find.end]) for find in finder.find(text)]


@pytest.mark.parametrize("kind", [*KINDS, "name"])
def test_planted_items_are_found_to_the_character(kind):
    finder = Finder(Detection(names=NAMES))
    items = list(planted(kind, 1000, seed=7))
    assert {(item.locale, item.form) for item in items} == {
        (locale, form) for locale in LOCALES for form in range(FORMS)
    }
    missed = [item for item in items if Find(item.start, item.end, kind) not in finder.find(item.text)]
    assert len(missed) <= 0.01 * len(items), missed[:5]


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        # From the documentation of the checks, or from public examples of the issuers.
        ("card", "4111 1111 1111 1111"),
        ("card", "5555-5555-5555-4444"),
        ("card", "378282246310005"),
        ("iban", "GB82 WEST 1234 5698 7654 32"),
        ("iban", "ES91 2100 0418 4502 0005 1332"),
        ("iban", "NL91ABNA0417164300"),
        ("national_id", "AB 12 34 56 C"),
        ("national_id", "11010519491231002X"),
        ("national_id", "36 574 261 809"),
        ("national_id", "12345678Z"),
        ("national_id", "X-2482300W"),
        ("national_id", "390.533.447-05"),
        ("phone", "020 7946 0958"),
        ("phone", "+81 3-1234-5678"),
        ("phone", "(010) 6552 9988"),
        ("email", "o'brien@example.com"),
        ("ip", "2001:db8::8a2e:370:7334"),
        ("url_user", "ftp://jane:secret@example.com/file"),
        ("url_user", "https://space.bilibili.com/12345678"),
        ("handle", "@jürgen_99"),
    ],
)
def test_public_examples_are_found(finder, kind, item):
    for text in (item, f"It is {item}.", f"是{item}。", f'"{item}", he wrote.'):
        assert found(finder, text) == [(kind, item)], text


@pytest.mark.parametrize(
    "text",
    [
        "He played 24/7 from 1939-1945, 1999 - 2004 and on 12.05.1999 and 2001-09-11.",
        "It cost 1.234.567 or 1,234,567 dollars, 12345678 points, $415 555 2671 and 3.14159265358979.",
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2 and the order 4111 1111 1111 1112.",  # wrong check digit
        "GB82 WEST 1234 5698 7654 33 and 110105194912310021 and 12345678A and 123-45-678.",
        "Version 10.0.0.1, v1.2.3.4, 127.0.0.1, 0.0.0.0, 256.1.1.1 and std::vector at 10:20:30.",
        "See https://www.imdb.com/title/tt0012345678 and https://twitter.com/search or http://a.org/user/login.",
        "WHAT THE F@@K, sh@t, #%$@ERS, f^@ks, 5 @ 10 and a@b, meet @5pm, wikitext @-@ dash.",
        "Read pages 100-200, chapters 12 13 14 15 16 17, scores 3-2 4-1 5-0 6-3.",
        "¡@Thank you.\n¡@Now, the next year.",  # a Big5 space read as Latin-1
        "At http://event.weibo.com/1072288 and https://notgithub.com/jane_doe the game is on.",
        "Phoenix 0.5 2003-03-08, lost in 0.8-20031228, a size of 2147483647 KB, a sheet with @import url, @null.",
    ],
)
def test_look_alikes_are_left_alone(text):
    assert found(Finder(Detection()), text) == []


def test_the_words_around_an_item_stay(finder):
    text = "Call 24/7 415-555-2671 or IBAN DE89 3704 0044 0532 0130 00 BANK now, @schultem所提到的。"
    assert found(finder, text) == [
        ("phone", "415-555-2671"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("handle", "@schultem"),
    ]
    assert masked(text, finder.find(text), {"phone": "P", "iban": "I", "handle": "H"}) == (
        "Call 24/7 P or IBAN I BANK now, H所提到的。"
    )


def test_phone_numbers_beside_each_other_are_all_found(finder):
    for numbers in (["415-555-2671", "415-555-2672"], ["8005552671", "(415) 555-2671"], ["13800138000"] * 3):
        for text in (" ".join(numbers), " / ".join(numbers), "、".join(numbers)):
            assert found(finder, text) == [("phone", number) for number in numbers]


def test_handles_in_exclamations_and_users_of_parts_of_a_site_are_found(finder):
    assert found(finder, "¡@maria ganó! Y @importante.\n") == [("handle", "@maria"), ("handle", "@importante")]
    assert found(finder, "https://gist.github.com/jane_doe/1") == [("url_user", "https://gist.github.com/jane_doe/1")]


def test_kinds_and_regions_limit_the_search():
    text = "jane@example.com, 138 0013 8000, @jane"
    assert found(Finder(Detection(("email",))), text) == [("email", "jane@example.com")]
    assert found(Finder(Detection(("phone",), ("US",))), text) == []
    assert found(Finder(Detection(("phone",), ("CN",))), text) == [("phone", "138 0013 8000")]


def test_a_url_with_a_password_is_one_find(finder):
    assert found(finder, "at https://jane:secret@example.com/?email=jane@example.com.") == [
        ("url_user", "https://jane:secret@example.com/?email=jane@example.com")
    ]


def test_names_are_whole_words_where_words_exist():
    names = Names(["Ann", "Mary Ann", "José", "王小明"])
    text = "Annabel met Ann, Mary\nAnn's José, Josés and ID王小明先生."
    assert sorted(text[start:end] for start, end, _ in names.find(text)) == [
        "Ann",
        "Ann",
        "José",
        "Mary\nAnn",
        "王小明",
    ]


def test_ordinary_texts_have_no_traces():
    for text in ("A fine film of 1999, seen at 10:30 in cinema 12.", "这部电影很好，评分９分。", ""):
        assert traces(text) is None
    for text in ("a@b", "http://x", "555 1234", "ID 12 34 56", "1.2.3.4", "::1", "１２３", "name＠host"):
        assert traces(text) is not None, text


def test_plain_keeps_offsets():
    text = "＋８６\u00a0１３８‑０013　８０００，好😀"
    assert plain(text) == "+86 138-0013 8000,好😀"
    assert len(plain(text)) == len(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("email", "passport")}, "is 'passport', which is unknown. Choose one of email, phone"),
        ({"kinds": ()}, "personal_data_kinds is empty"),
        ({"regions": ("UK",)}, "personal_data_regions has 'UK'"),
    ],
)
def test_unknown_settings_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        Detection(**settings)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("\n", "holds no names"), ("Jo\nX", "'X'")])
def test_bad_files_of_names_are_rejected(tmp_path, content, message):
    if content is not None:
        (tmp_path / "names.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Detection.of(KINDS, ("US",), str(tmp_path / "names.txt"))


@pytest.mark.parametrize("library", ["phonenumbers", "stdnum.luhn"])
def test_a_missing_library_is_one_error_with_the_remedy(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[privacy\]'"):
        Finder(Detection())
