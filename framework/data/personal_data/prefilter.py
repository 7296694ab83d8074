"""Decides at hundreds of megabytes per second whether a text can hold personal data, before any pattern is tried.

Bytes are first translated to a few classes, so that each regular expression begins with one byte and is searched for at
the speed of memory.
"""

import re
from typing import NamedTuple

from framework.data.personal_data.addresses import SITES, WRITTEN_AT

_DIGIT, _HEX, _GAP, _OTHER = ord("0"), ord("h"), ord("-"), ord("x")
# ASCII separators of numbers, and the bytes of U+00A0, U+2009, U+202F and the dashes U+2010 to U+2013.
_GAP_BYTES = b" -()/\xc2\xa0\xe2\x80\x89\xaf\x90\x91\x92\x93"


def _classes() -> bytes:
    table = bytearray([_OTHER] * 256)
    for characters, name in (
        (b"0123456789", _DIGIT),
        (b"abcdefABCDEF", _HEX),
        (_GAP_BYTES, _GAP),
        (b".", ord(".")),
        (b":", ord(":")),
    ):
        for character in characters:
            table[character] = name
    return bytes(table)


_CLASSES = _classes()
# Six digits that at most three separators of up to three bytes divide, or the middle of an IPv4 address.
_NUMBER = re.compile(rb"0(?:(?:[-.]{0,9}0){5}|0{0,2}\.0{1,3}\.0)")
_IPV6 = re.compile(rb":[0h]{0,4}:")
_WIDE_NUMBER = re.compile(rb"(?:\xef\xbc[\x90-\x99]){3}")
_WIDE_AT = "＠".encode()
_WRITTEN_AT = tuple(map(str.encode, WRITTEN_AT))
_URL = (b"://", *map(str.encode, SITES))


class Traces(NamedTuple):
    """Traces of personal data in a text.

    Attributes:
        at: True if the text has an at sign, or one in words.
        url: True if the text has a part of a URL.
        number: True if the text has a long number, or numbers with dots as in an IPv4 address.
        colons: True if the text has colons as in an IPv6 address.
    """

    at: bool
    url: bool
    number: bool
    colons: bool


def traces(text: str) -> Traces | None:
    """Returns the traces of personal data in a text; None if there are none."""
    raw = text.encode("utf-8", "surrogatepass")
    classes = raw.translate(_CLASSES)
    is_wide = not raw.isascii()
    # A single byte is searched for ten times as fast as several.
    at = b"@" in raw or (is_wide and _WIDE_AT in raw)
    if not at and (b"(" in raw or b"[" in raw):
        at = any(map(raw.__contains__, _WRITTEN_AT))
    url = b"/" in raw and any(map(raw.__contains__, _URL))
    number = _NUMBER.search(classes) is not None or (is_wide and _WIDE_NUMBER.search(raw) is not None)
    colons = _IPV6.search(classes) is not None
    return Traces(at, url, number, colons) if at or url or number or colons else None


_VARIANTS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_VARIANTS |= dict.fromkeys((0xA0, 0x2007, 0x2009, 0x202F, 0x3000), ord(" "))
_VARIANTS |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212), ord("-"))
_VARIANT = re.compile(
    "[" + "".join(map(chr, _VARIANTS)).replace("\\", "\\\\").replace("]", "\\]").replace("-", "\\-") + "]"
)


def plain(text: str) -> str:
    """Replaces full-width characters, special spaces and dashes by ASCII; the length of the text stays the same."""
    return text if text.isascii() else _VARIANT.sub(_plain_character, text)


def _plain_character(match: re.Match[str]) -> str:
    return chr(_VARIANTS[ord(match.group())])
