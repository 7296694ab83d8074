"""Finds names of a list in a text, with filters that cost little for texts without them."""

import re
from collections.abc import Iterator, Sequence

from framework.data.personal_data.kinds import NAME, Find

_WORDS = bytes(byte if byte < 128 and chr(byte).isalnum() else 32 for byte in range(256))
_LETTER = "[A-Za-z0-9_\u00c0-\u024f\u0370-\u052f]"
_FIRST_UNSPACED = "\u0e00"
"""First code point of the scripts without spaces between words, from Thai on."""


class Names:
    """Finder of names, written exactly as in the list.

    Names of Latin, Greek and Cyrillic letters are whole words. Names in scripts without spaces are found anywhere.

    Args:
        names: Names, of at least two characters each.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._by_word: dict[bytes, list[str]] = {}
        self._by_letter: dict[str, list[str]] = {}
        for name in names:
            words = name.encode().translate(_WORDS).split() if name.isascii() else []
            if words:
                self._by_word.setdefault(words[0], []).append(name)
            else:
                self._by_letter.setdefault(name[0], []).append(name)

    def find(self, text: str) -> Iterator[Find]:
        """Yields the names of a text, longer ones first."""
        for name in sorted(self._candidates(text), key=lambda name: (-len(name), name)):
            yield from (Find(match.start(), match.end(), NAME) for match in re.finditer(_pattern(name), text))

    def _candidates(self, text: str) -> Iterator[str]:
        """Yields the names whose first word, or first letter, is in the text."""
        if self._by_word:
            words = text.encode("utf-8", "surrogatepass").translate(_WORDS).split()
            for word in self._by_word.keys() & set(words):
                yield from self._by_word[word]
        if self._by_letter and not text.isascii():
            for letter in self._by_letter.keys() & set(text):
                yield from (name for name in self._by_letter[letter] if " " in name or name in text)


def _pattern(name: str) -> str:
    """Returns a pattern of a name; white space of any kind may separate its words."""
    before = f"(?<!{_LETTER})" if name[0] < _FIRST_UNSPACED else ""
    after = f"(?!{_LETTER})" if name[-1] < _FIRST_UNSPACED else ""
    return before + r"\s+".join(map(re.escape, name.split())) + after
