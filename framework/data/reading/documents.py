"""From raw documents to sentences: cleaning, exact duplicates, and simple rules for where a sentence ends.

The rules need no model and serve languages with Western punctuation, and Chinese and Japanese; what they get wrong (an
unlisted abbreviation before a capital letter) moves a boundary and loses no text.
"""

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


class SeenHashes:
    """A set of 64-bit hashes in sorted arrays that are merged when they are of like size.

    8 bytes an element, 16 for the moment of a merge; a Python set of integers takes about 100.
    """

    def __init__(self) -> None:
        # Each more than twice as long as the next, so there are few of them and an element is merged few times.
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Adds hashes in their order.

        Args:
            hashes: (hashes,) uint64.

        Returns:
            (hashes,) bool, True where the hash was not in the set before: of equal ones the first.
        """
        unique, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for run in self._runs:
            places = np.searchsorted(run, unique)
            known |= run[np.minimum(places, len(run) - 1)] == unique
        added = np.zeros(len(hashes), dtype=bool)
        added[first[~known]] = True
        if added.any():
            self._append(unique[~known])
        return added

    def _append(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort()
        self._runs.append(run)


@dataclass(frozen=True)
class CleanTexts:
    """What is left of a batch of texts.

    Attributes:
        texts: Cleaned, neither empty nor repeated.
        hashes: (texts,) uint64 of each; it identifies the content, so that repeated documents always fall on the same
            side of a split.
        places: (texts,) int64 place of each in the batch that came in.
        num_duplicates: Texts of the batch that were seen before.
    """

    texts: list[str]
    hashes: np.ndarray
    places: np.ndarray
    num_duplicates: int


class Cleaner:
    """Cleans texts and drops empty and repeated ones; remembers every text that it saw.

    Args:
        strip_html: Turn `<br />`, `<p>` and the like into line ends, drop `<i>`, `<b>` and the like, resolve entities
            (`&amp;`). What only looks like a tag ("a < b", "<3", "<sarcasm>") stays.
        deduplicate: Drop a document whose cleaned text, white space aside, was seen before.
    """

    def __init__(self, strip_html: bool = False, deduplicate: bool = True) -> None:
        self._strip_html = strip_html
        self._seen = SeenHashes() if deduplicate else None

    def clean(self, texts: Sequence[str]) -> CleanTexts:
        """Cleans the next batch; how texts are divided into batches changes nothing."""
        cleaned = [strip_html(text) if self._strip_html else text.strip() for text in texts]
        places = np.array([place for place, text in enumerate(cleaned) if text], dtype=np.int64)
        hashes = np.array([text_hash(cleaned[place]) for place in places], dtype=np.uint64)
        num_full = len(places)
        if self._seen is not None:
            added = self._seen.add(hashes)
            places, hashes = places[added], hashes[added]
        return CleanTexts([cleaned[place] for place in places], hashes, places, num_full - len(places))


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
