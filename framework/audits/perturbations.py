"""Edits that should not change the label of a text: each is a pure function of the text and a key.

The key is a hash of the seed, the name of the edit and the index of the row. An edit that does not apply to a text
returns it unchanged. Swapped characters, punctuation, contractions and URLs are edits of CheckList (Ribeiro et al.
2020, arXiv:2005.04118, `checklist.perturb`).
"""

import re
import string
from collections.abc import Callable, Sequence
from typing import TypeVar

from framework.audits.chinese import to_full_width, to_half_width, to_traditional
from framework.random import key

Edit = Callable[[str, int], str]

T = TypeVar("T")

_WORD = re.compile(r"[^\W\d_]{4,}")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_FINAL_MARKS = ".!?。！？"
_EMOJI = ("🙂", "📎", "📅", "🗒️", "📌", "🔎")
_URL_CHARACTERS = string.ascii_letters + string.digits
_URL_LENGTH = 8
_CONTRACTIONS = {
    **{
        f"{verb} not": f"{verb}n't"
        for verb in ("are", "could", "did", "do", "does", "had", "has", "have", "is", "should", "was", "were", "would")
    },
    "cannot": "can't",
    "can not": "can't",
    "will not": "won't",
    **{f"{word} is": f"{word}'s" for word in ("he", "how", "it", "she", "that", "there", "what", "where", "who")},
    **{f"{word} are": f"{word}'re" for word in ("they", "we", "you")},
    **{f"{word} will": f"{word}'ll" for word in ("he", "i", "it", "she", "they", "we", "you")},
    **{f"{word} have": f"{word}'ve" for word in ("i", "they", "we", "you")},
    "i am": "i'm",
    "let us": "let's",
}
_EXPANSIONS = {short: long for long, short in _CONTRACTIONS.items() if long != "can not"}


def _any_of(forms: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


_CONTRACTED, _EXPANDED = _any_of(list(_EXPANSIONS)), _any_of(list(_CONTRACTIONS))


def _choose(choices: Sequence[T], draw: int) -> T:
    return choices[draw % len(choices)]


def typos(text: str, draw: int) -> str:
    """Swaps two neighbouring different letters inside one word of at least four letters. In Chinese, two characters."""
    places = [
        index
        for word in _WORD.finditer(text)
        for index in range(word.start() + 1, word.end() - 2 + bool(_HAN.match(word[0])))
        if text[index] != text[index + 1]
    ]
    if not places:
        return text
    place = _choose(places, draw)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def case(text: str, draw: int) -> str:
    """Writes the text in capitals or in small letters."""
    forms = [form for form in (text.upper(), text.lower()) if form != text]
    return _choose(forms, draw) if forms else text


def punctuation(text: str, draw: int) -> str:
    """Removes final marks, or adds a full stop if there is none."""
    del draw
    stripped = text.rstrip()
    bare = stripped.rstrip(_FINAL_MARKS)
    if bare != stripped:
        return bare or text
    return stripped + ("。" if _HAN.search(text) else ".")


def contractions(text: str, draw: int) -> str:
    """Contracts or expands one English form, such as "is not" and "isn't"."""
    text = text.replace("’", "'")
    found = [(match, _EXPANSIONS) for match in _CONTRACTED.finditer(text)]
    found += [(match, _CONTRACTIONS) for match in _EXPANDED.finditer(text)]
    if not found:
        return text
    match, table = _choose(found, draw)
    other = table[match[0].lower()]
    if match[0][0].isupper() or other.startswith(("i'", "i ")):
        other = other[0].upper() + other[1:]
    return text[: match.start()] + other + text[match.end() :]


def emoji(text: str, draw: int) -> str:
    """Adds an emoji without a sentiment at the end."""
    return f"{text.rstrip()} {_choose(_EMOJI, draw)}"


def url(text: str, draw: int) -> str:
    """Adds a random URL at the start or at the end."""
    name = "".join(_choose(_URL_CHARACTERS, key(draw, index)) for index in range(_URL_LENGTH))
    link = f"https://example.com/{name}"
    return f"{link} {text}" if draw % 2 else f"{text.rstrip()} {link}"


def width(text: str, draw: int) -> str:
    """Writes the Latin letters, digits and marks of a Chinese text in full or in half width."""
    if not _HAN.search(text):
        return text
    forms = [form for form in (to_full_width(text), to_half_width(text)) if form != text]
    return _choose(forms, draw) if forms else text


def traditional(text: str, draw: int) -> str:
    """Writes common simplified characters in their traditional forms."""
    del draw
    return to_traditional(text)


EDITS: dict[str, Edit] = {
    "typos": typos,
    "case": case,
    "punctuation": punctuation,
    "contractions": contractions,
    "emoji": emoji,
    "url": url,
    "width": width,
    "traditional": traditional,
}
"""Edits by name."""


def edited(name: str, text: str, seed: int, row: int) -> str:
    """Returns the edited text of a row; the text itself if the edit does not apply.

    Args:
        name: Name in EDITS.
        text: Text of the row.
        seed: Seed of the audit.
        row: Index of the row in its split.
    """
    return EDITS[name](text, key(seed, name, row))
