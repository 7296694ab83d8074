"""What of a raw text gets a label each: its words, its parts between white space, or its characters."""

from typing import Literal, NamedTuple

from tokenizers import Regex
from tokenizers.pre_tokenizers import BertPreTokenizer, Sequence, Split, WhitespaceSplit

Units = Literal["words", "white_space", "characters"]

# The characters that BERT sets apart: `_is_chinese_char` in its tokenization.py.
_IDEOGRAPHS = (
    r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}"
    r"\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{2F800}-\x{2FA1F}]"
)
_WORDS = Sequence([Split(Regex(_IDEOGRAPHS), "isolated"), BertPreTokenizer()])
_WHITE_SPACE = WhitespaceSplit()


class TextUnit(NamedTuple):
    """A part of a text.

    Attributes:
        text: As in the text.
        start: Place of its first character (code point) in the text.
        stop: Place behind its last one.
    """

    text: str
    start: int
    stop: int


def split_units(text: str, units: Units) -> list[TextUnit]:
    """Splits a text; white space belongs to no unit, everything else to exactly one.

    Args:
        text: Any, the empty text too.
        units: "words": as BERT splits before its vocabulary, that is at white space, with each punctuation mark and
            each Chinese character by itself; "white_space": at white space only, for texts that are tokenised already;
            "characters": each code point by itself.
    """
    if units == "characters":
        return [TextUnit(each, place, place + 1) for place, each in enumerate(text) if not each.isspace()]
    splitter = _WORDS if units == "words" else _WHITE_SPACE
    pieces = splitter.pre_tokenize_str(text)
    return [TextUnit(text[start:stop], start, stop) for _, (start, stop) in pieces]
