"""Turns raw documents into sentences: cleaning, removal of exact duplicates, and rules for the end of a sentence.

The rules need no model. They cover languages with Western punctuation, Chinese and Japanese. An error of the rules (an
unlisted abbreviation before a capital letter) shifts a boundary but loses no text.
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
# These end a sentence only before a capital letter: "No. 5", but "etc. The".
_MAY_END = frozenset({"jr", "sr", "etc", "no", "inc", "ltd", "co", "corp", "al"})


class SeenHashes:
    """Set of 64-bit hashes in sorted arrays, which are merged when their sizes are similar.

    An element takes 8 bytes, and 16 during a merge. In a Python set of integers it takes about 100.
    """

    def __init__(self) -> None:
        # Each array is more than twice as long as the next, so there are few and an element is merged few times.
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Adds hashes in order.

        Args:
            hashes: (hashes,) uint64 hashes.

        Returns:
            (hashes,) bool, True for hashes that were new to the set; of equal hashes, for the first.
        """
        unique, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for run in self._runs:
            positions = np.searchsorted(run, unique)
            known |= run[np.minimum(positions, len(run) - 1)] == unique
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
    """Texts of a batch that remain after cleaning.

    Attributes:
        texts: Cleaned texts, neither empty nor repeated.
        hashes: (texts,) uint64 hash of the content of each, so that repeated documents always belong to the same split.
        indices: (texts,) int64 index of each in the original batch.
        num_duplicates: Texts of the batch that were seen before.
    """

    texts: list[str]
    hashes: np.ndarray
    indices: np.ndarray
    num_duplicates: int


class Cleaner:
    """Filter that cleans texts and drops empty and repeated ones. It remembers the hash of every text.

    Args:
        strip_html: True replaces `<br />`, `<p>` and similar tags by line ends, drops `<i>`, `<b>` and similar tags,
            and resolves entities (`&amp;`). Text that only looks like a tag ("a < b", "<3", "<sarcasm>") stays.
        deduplicate: True drops a document whose cleaned text, except for white space, was seen before.
    """

    def __init__(self, strip_html: bool = False, deduplicate: bool = True) -> None:
        self._strip_html = strip_html
        self._seen = SeenHashes() if deduplicate else None

    def clean(self, texts: Sequence[str]) -> CleanTexts:
        """Cleans the next batch. The division of texts into batches does not affect the result."""
        cleaned = [strip_html(text) if self._strip_html else text.strip() for text in texts]
        indices = np.array([index for index, text in enumerate(cleaned) if text], dtype=np.int64)
        hashes = np.array([text_hash(cleaned[index]) for index in indices], dtype=np.uint64)
        num_full = len(indices)
        if self._seen is not None:
            added = self._seen.add(hashes)
            indices, hashes = indices[added], hashes[added]
        return CleanTexts([cleaned[index] for index in indices], hashes, indices, num_full - len(indices))


def strip_html(text: str) -> str:
    """Removes the tags and resolves the entities of a text that is mostly plain text."""
    if "<" in text:
        text = _INLINE_TAG.sub("", _BREAK_TAG.sub("\n", text))
    return html.unescape(text).strip()


def text_hash(text: str) -> int:
    """Returns a 64-bit hash of a text; any run of white space counts as one space."""
    normal = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def split_sentences(text: str) -> list[str]:
    """Splits a document into sentences.

    White space within a sentence is reduced to single spaces. No other character is lost. A sentence ends

    1. at a blank line (a heading needs no full stop); a single line end is a space;
    2. after one or several `.`, `!`, `?` or `…`, with closing quotes and brackets, if white space follows and the next
       word does not begin with a lower-case letter (in a text without capital letters every such mark counts); but not
       after a listed abbreviation ("Mr."), nor after a single capital letter ("J. Smith", "U.S.");
    3. after `。`, `！`, `？` or `……` with closing quotes, with or without white space.
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
    # One capital letter is an initial, and "U.S" contains dots of its own. "I." more often ends a sentence than it is
    # an initial.
    return not (word != "I" and word[-1:].isupper() and (len(word) == 1 or word[-2] == "."))
