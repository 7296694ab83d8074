"""From raw documents to sentences: cleaning, exact duplicates, and simple rules for where a sentence ends.

The rules need no model and serve languages with Western punctuation, and Chinese and Japanese; what they get wrong (an
unlisted abbreviation before a capital letter) moves a boundary and loses no text.
"""

import hashlib
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_BREAK_TAG = re.compile(r"</?(?:br|p|hr|div|li|ul|ol|tr|table|h[1-6])\b[^<>]*>", re.IGNORECASE)
_INLINE_TAG = re.compile(r"</?(?:i|b|u|s|em|strong|span|a|font|small|sub|sup)\b[^<>]*>", re.IGNORECASE)
# A blank line; Western marks with closing quotes before white space; Chinese marks with closing quotes.
_BOUNDARY = re.compile(r"\n[^\S\n]*\n\s*|[.!?…]+[\"'”’)\]»]*\s+|[。！？]+[”’」』）】》\"]*\s*|……[”’」』）】》]*\s*")
_OPENERS = "\"'“‘([«-–—「『（【《"
# Before a capital letter these do not end a sentence.
_TITLES = {
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "rev",
    "hon",
    "gen",
    "col",
    "capt",
    "lt",
    "sgt",
    "sen",
    "rep",
    "gov",
    "pres",
    "st",
}
_SHORT_FORMS = {"vs", "fig", "vol", "e.g", "i.e", "cf", "approx"}
_MONTHS = {"jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"}
_ABBREVIATIONS = frozenset(_TITLES | _SHORT_FORMS | _MONTHS)
# These end one only before a capital letter: "No. 5", but "etc. The".
_MAY_END = frozenset({"jr", "sr", "etc", "no", "inc", "ltd", "co", "corp", "al"})


@dataclass
class Cleaner:
    """Cleans texts and drops empty and repeated ones, counting what it drops.

    Attributes:
        strip_html: Turn `<br />`, `<p>` and the like into line ends, drop `<i>`, `<b>` and the like, resolve entities
            (`&amp;`). What only looks like a tag ("a < b", "<3", "<sarcasm>") stays.
        deduplicate: Drop a document whose cleaned text, white space aside, was seen before.
        num_read: Documents that came in.
        num_empty: Of these, without text.
        num_duplicates: Of these, seen before.
    """

    strip_html: bool = False
    deduplicate: bool = True
    num_read: int = 0
    num_empty: int = 0
    num_duplicates: int = 0
    _seen: set[int] = field(default_factory=set, repr=False)

    def clean(self, texts: Iterable[str]) -> Iterator[tuple[str, int]]:
        """Streams what is kept: (cleaned text, its 64-bit hash).

        The hash identifies the content, so that repeated documents always fall on the same side of a split.
        """
        for text in texts:
            self.num_read += 1
            text = strip_html(text) if self.strip_html else text.strip()
            if not text:
                self.num_empty += 1
                continue
            identity = text_hash(text)
            if self.deduplicate:
                if identity in self._seen:
                    self.num_duplicates += 1
                    continue
                self._seen.add(identity)
            yield text, identity


def strip_html(text: str) -> str:
    """Plain text of what is mostly plain text with a few tags and entities."""
    if "<" in text:
        text = _INLINE_TAG.sub("", _BREAK_TAG.sub("\n", text))
    return html.unescape(text).strip()


def text_hash(text: str) -> int:
    """64-bit hash of a text in which all white space counts as one space."""
    normal = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def split_sentences(text: str) -> list[str]:
    """Splits a document into sentences, white space within each reduced to single spaces; no other character is lost.

    A sentence ends

    1. at a blank line (a heading needs no full stop); a single line end is a space;
    2. after `.`, `!`, `?` or `…` (several, closing quotes and brackets with them) where white space follows and what
       comes next does not begin with a lower-case letter (in a text that has no capital letters every such mark
       counts); not after a listed abbreviation ("Mr."), nor after a single capital letter ("J. Smith", "U.S.");
    3. after `。`, `！`, `？` or `……` with closing quotes, white space or not.
    """
    only_lower = text == text.lower()
    sentences: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        if match.end() < len(text) and not _ends_sentence(text, start, match, only_lower):
            continue
        _append(sentences, text[start : match.end()])
        start = match.end()
    _append(sentences, text[start:])
    return sentences


def _append(sentences: list[str], sentence: str) -> None:
    sentence = " ".join(sentence.split())
    if sentence:
        sentences.append(sentence)


def _ends_sentence(text: str, start: int, match: re.Match[str], only_lower: bool) -> bool:
    mark = match.group()
    if mark[0] not in ".!?…" or (mark.startswith("……") and mark[-1] not in " \n\t"):
        return True
    if "\n" in mark and mark.count("\n") > 1:
        return True
    following = text[match.end() : match.end() + 4].lstrip(_OPENERS)
    if following[:1].islower() and not only_lower:
        return False
    if mark.rstrip() != ".":
        return True
    space = max(text.rfind(" ", start, match.start()), text.rfind("\n", start, match.start()), start - 1)
    word = text[space + 1 : match.start()].lstrip(_OPENERS)
    if word.lower() in _ABBREVIATIONS:
        return False
    if word.lower() in _MAY_END:
        return following[:1].isupper()
    # One capital letter is an initial, and "U.S" holds dots of its own; "I." ends a sentence more often than it is an
    # initial.
    return not (word != "I" and word[-1:].isupper() and (len(word) == 1 or word[-2] == "."))
