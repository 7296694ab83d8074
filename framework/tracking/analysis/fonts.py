"""Selects a font for a text: matplotlib's own font draws empty boxes for Chinese, Japanese and Korean."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

_PREFERRED = (
    "Noto Sans CJK",
    "Source Han Sans",
    "PingFang",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi",
    "Heiti",
    "Droid Sans",
)
"""Preferred fonts if several have all characters; their style matches the rest of a plot."""


def font_for(texts: Iterable[str]) -> FontProperties | None:
    """Returns the default font if it has all characters, else the first installed font that has; None if none has."""
    needed = {ord(char) for text in texts for char in text if not char.isspace()}
    default = FontProperties()
    if needed <= _code_points(findfont(default)):
        return default
    for file in _files():
        if needed <= _code_points(file):
            return FontProperties(fname=file)
    return None


@cache
def _files() -> tuple[str, ...]:
    def rank(name: str) -> int:
        return next((index for index, prefix in enumerate(_PREFERRED) if name.startswith(prefix)), len(_PREFERRED))

    # Last Resort has all characters, but draws each as a box.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: (rank(font.name), font.style != "normal", str(font.weight)))
    return tuple(dict.fromkeys(font.fname for font in fonts if Path(font.fname).is_file()))


@cache
def _code_points(file: str) -> frozenset[int]:
    """Returns the code points of a font file; empty if the file cannot be read."""
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
