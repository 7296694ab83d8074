"""Restores natural spacing from words as BERT splits them: at each punctuation mark and each Chinese character.

The original white space is lost. The rules follow common usage: no spaces within Chinese and Japanese, before a full
stop and similar marks, or inside contractions, hyphenated words, numbers and quotes.
"""

import re
from collections.abc import Iterable, Sequence

_UNSPACED = re.compile(
    "[\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003134f]"
)
"""Chinese characters, kana, and the punctuation of both."""

_CLOSING = frozenset(".,;:!?%)]}…”»°‰")
_OPENING = frozenset("([{¿¡“‘„‚#")
_CURRENCIES = frozenset("$£€¥")
_APOSTROPHES = frozenset("'’")
_INSIDE_WORDS = frozenset("-/_@‐‑")
_INSIDE_NUMBERS = frozenset("–:.")
_AFTER_APOSTROPHE = frozenset(("s", "t", "d", "m", "ll", "re", "ve", "em", "n", "clock"))
_BEFORE_APOSTROPHE = frozenset(
    ("qu", "jusqu", "lorsqu", "puisqu", "quelqu", "aujourd", "dell", "nell", "all", "sull", "dall", "un", "quest")
)
_AFTER_HYPHEN = frozenset(("and", "or", "und", "oder", "bzw"))
_AFTER_DOT = frozenset(("com", "org", "net", "edu", "gov", "html"))
_SHORT = 2
"""Letters on each side of `&` in R&B, AT&T, Q&A."""


def unspaced_share(texts: Iterable[str]) -> float:
    """Returns the share of Chinese characters and kana among the letters of texts."""
    num_letters = num_unspaced = 0
    for text in texts:
        num_letters += sum(map(str.isalpha, text))
        num_unspaced += sum(map(str.isalpha, _UNSPACED.findall(text)))
    return num_unspaced / num_letters if num_letters else 0.0


def join_words(words: Sequence[str]) -> str:
    """Joins words into a text."""
    return _Joining(words).text()


def join_word_pieces(pieces: Sequence[str], prefix: str) -> str:
    """Joins the tokens of a WordPiece vocabulary into a text.

    Args:
        pieces: Tokens, without special tokens.
        prefix: Prefix of tokens that continue a word.
    """
    words: list[str] = []
    for piece in pieces:
        if words and prefix and piece.startswith(prefix):
            words[-1] += piece.removeprefix(prefix)
        else:
            words.append(piece)
    return join_words(words)


class _Joining:
    """Decides for each word whether it is joined to the previous and to the next word."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.before = [False] * (len(words) + 1)
        self.behind = [False] * (len(words) + 1)
        self.is_open = dict.fromkeys(('"', "'"), False)
        for index in range(len(words)):
            self.before[index], self.behind[index] = self._joins(index)

    def text(self) -> str:
        """Returns the words with the spaces between them."""
        parts: list[str] = []
        for index, word in enumerate(self.words):
            if index and not (self.behind[index - 1] or self.before[index]):
                parts.append(" ")
            parts.append(word)
        return "".join(parts)

    def _joins(self, index: int) -> tuple[bool, bool]:
        """Returns whether a word is joined to the previous word, and to the next word."""
        word, left, right = self._word(index), self._word(index - 1), self._word(index + 1)
        if _UNSPACED.match(word) or _UNSPACED.match(word[-1:]):
            return bool(_UNSPACED.match(word)), bool(_UNSPACED.match(word[-1:]))
        if len(word) > 1:
            # Tokenized corpora keep contractions together: do n't, it 's.
            return word.lower() == "n't" or (word[0] in _APOSTROPHES and word[1].isalpha()), False
        if word in _APOSTROPHES:
            return self._apostrophe(index, word, left, right)
        if word == '"':
            return self._quote(word)
        if word == "“" and self._is_german_quote(index):
            return True, False
        both = _is_word(left) and _is_word(right)
        if word in _INSIDE_NUMBERS and left[-1:].isdecimal() and right[:1].isdecimal():
            return True, True
        if word == ",":
            return True, left.isdecimal() and len(left) <= 3 and right.isdecimal() and len(right) == 3
        if word == ".":
            initials = len(left) == 1 and len(right) == 1 and left.isalpha() and right.isalpha()
            return True, initials or (both and right in _AFTER_DOT)
        if word == "-" and "-" in (left, right):  # a dash
            return left == "-", right == "-"
        if word in ("/", ":") and (right == "/" or left in ("/", ":")):  # http://
            return True, True
        if word in _INSIDE_WORDS and right.lower() in _AFTER_HYPHEN:
            return both, False  # high- and low-level
        if word in _INSIDE_WORDS:
            return both, both or (word != "/" and not _is_word(left) and _is_word(right))
        if word == "&":
            short = both and len(left) <= _SHORT and len(right) <= _SHORT
            return short, short
        if word == "+":
            return left == "+" or (right == "+" and _is_word(left)), False
        return word in _CLOSING, word in _OPENING or (word in _CURRENCIES and right[:1].isdecimal())

    def _word(self, index: int) -> str:
        return self.words[index] if 0 <= index < len(self.words) else ""

    def _apostrophe(self, index: int, word: str, left: str, right: str) -> tuple[bool, bool]:
        """Distinguishes an apostrophe inside a word, one after it, and a quote."""
        if self._is_inside_word(left, right):
            return True, True
        if right[:2].isdecimal() and not self.is_open["'"]:
            return False, True  # '90s
        if word == "’":
            return True, False
        ends_word = _is_word(left) and not self.is_open["'"] and not self._has_closing_quote(index)
        return (True, False) if ends_word else self._quote("'")

    def _is_inside_word(self, left: str, right: str) -> bool:
        if not (_is_word(left) and _is_word(right)):
            return False
        if right.lower() in _AFTER_APOSTROPHE or left.lower() in _BEFORE_APOSTROPHE:
            return True
        return len(left) == 1 and left.isalpha() and left.lower() not in "ai"  # l'homme, O'Brien

    def _has_closing_quote(self, index: int) -> bool:
        """Returns whether a later mark is not an apostrophe inside a word."""
        return any(
            self.words[later] == "'" and not self._is_inside_word(self._word(later - 1), self._word(later + 1))
            for later in range(index + 1, len(self.words))
        )

    def _quote(self, mark: str) -> tuple[bool, bool]:
        closes = self.is_open[mark]
        self.is_open[mark] = not closes
        return closes, not closes

    def _is_german_quote(self, index: int) -> bool:
        """Returns whether “ closes a quote that „ opened."""
        earlier = [word for word in self.words[:index] if word in ("„", "“")]
        return bool(earlier) and earlier[-1] == "„"


def _is_word(word: str) -> bool:
    return word[:1].isalnum() and word[-1:].isalnum()
