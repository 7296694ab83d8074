"""A font that can write a text: matplotlib's own lacks Chinese, Japanese and Korean, and would draw empty boxes."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

_FIRST = (
    "Noto Sans CJK",
    "Source Han Sans",
    "PingFang",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi",
    "Heiti",
    "Droid Sans",
)
"""Where several can, one of these looks best beside the rest of a picture."""


def font_for(texts: Iterable[str]) -> FontProperties | None:
    """The default font where it has all signs, else the first on this machine that has; None: there is none."""
    needed = {ord(sign) for text in texts for sign in text if not sign.isspace()}
    default = FontProperties()
    if needed <= _signs(findfont(default)):
        return default
    for file in _files():
        if needed <= _signs(file):
            return FontProperties(fname=file)
    return None


@cache
def _files() -> tuple[str, ...]:
    def rank(name: str) -> int:
        return next((place for place, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST))

    # Last Resort has all signs, and draws each as a box.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: (rank(font.name), font.style != "normal", str(font.weight)))
    return tuple(dict.fromkeys(font.fname for font in fonts if Path(font.fname).is_file()))


@cache
def _signs(file: str) -> frozenset[int]:
    """Code points that a font file has; none where it cannot be read."""
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
