"""Finds names of a list in a text, with filters that cost little for texts without them."""

import re
from collections.abc import Iterator, Sequence
from functools import cache

from framework.data.personal_data.kinds import NAME, Find

_LETTER = "[A-Za-z0-9_\u00c0-\u024f\u0370-\u052f]"
_FIRST_UNSPACED = "\u0e00"
"""First code point of the scripts without spaces between words, from Thai on."""
_WORD = re.compile("[A-Za-z0-9]+")


class Names:
    """Finder of names, written exactly as in the list.

    Names of Latin, Greek and Cyrillic letters are whole words. Names in scripts without spaces are found anywhere.

    Args:
        names: Names, of at least two characters each.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._by_beginning: dict[str, list[str]] = {}
        for name in names:
            word = _WORD.match(name)
            self._by_beginning.setdefault(name[0] if word is None else word.group(), []).append(name)
        letters = {beginning[0] for beginning in self._by_beginning}
        words = {letter for letter in letters if _WORD.match(letter)}
        # Each begins with one set of characters, for which `re` has a fast loop.
        self._words = re.compile(f"[{_escaped(words)}][A-Za-z0-9]*") if words else None
        self._letters = re.compile(f"[{_escaped(letters - words)}]") if letters - words else None
        self._has_ascii_letters = any(map(str.isascii, letters - words))

    def find(self, text: str) -> Iterator[Find]:
        """Yields the names of a text, longer ones first."""
        found = []
        for pattern in (self._words, self._letters):
            if pattern is None or (pattern is self._letters and text.isascii() and not self._has_ascii_letters):
                continue
            # A word of a name also matches within other words; the pattern of the name decides.
            if self._by_beginning.keys().isdisjoint(pattern.findall(text)):
                continue
            for beginning in pattern.finditer(text):
                for name in self._by_beginning.get(beginning.group(), ()):
                    match = _pattern(name).match(text, beginning.start())
                    if match is not None:
                        found.append((-len(name), name, match.start(), match.end()))
        yield from (Find(start, end, NAME) for _, _, start, end in sorted(found))


def _escaped(characters: set[str]) -> str:
    return "".join(map(re.escape, sorted(characters)))


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """Returns a pattern of a name; white space of any kind may separate its words."""
    before = f"(?<!{_LETTER})" if name[0] < _FIRST_UNSPACED else ""
    after = f"(?!{_LETTER})" if name[-1] < _FIRST_UNSPACED else ""
    return re.compile(before + r"\s+".join(map(re.escape, name.split())) + after)
