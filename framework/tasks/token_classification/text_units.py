"""Units of a raw text that are tagged: words, parts between white space, or characters."""

from typing import Literal, NamedTuple

from tokenizers import Regex
from tokenizers.pre_tokenizers import BertPreTokenizer, Sequence, Split, WhitespaceSplit

Units = Literal["words", "white_space", "characters"]

# Characters that BERT isolates: `_is_chinese_char` in its tokenization.py.
_IDEOGRAPHS = (
    r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}"
    r"\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{2F800}-\x{2FA1F}]"
)
_WORDS = Sequence([Split(Regex(_IDEOGRAPHS), "isolated"), BertPreTokenizer()])
_WHITE_SPACE = WhitespaceSplit()


class TextUnit(NamedTuple):
    """A part of a text.

    Attributes:
        text: Characters of the unit.
        start: Offset of its first character (code point) in the text.
        stop: Exclusive end offset in the text.
    """

    text: str
    start: int
    stop: int


def split_units(text: str, units: Units) -> list[TextUnit]:
    """Splits a text into units. White space belongs to no unit, every other character to exactly one.

    Args:
        text: Any text, possibly empty.
        units: "words": as BERT splits before it applies its vocabulary, that is at white space, with each punctuation
            mark and each Chinese character as a unit. "white_space": at white space only, for tokenized texts.
            "characters": each code point is a unit.
    """
    if units == "characters":
        return [TextUnit(each, offset, offset + 1) for offset, each in enumerate(text) if not each.isspace()]
    splitter = _WORDS if units == "words" else _WHITE_SPACE
    pieces = splitter.pre_tokenize_str(text)
    return [TextUnit(text[start:stop], start, stop) for _, (start, stop) in pieces]
