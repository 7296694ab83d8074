"""Pictures with captions for `experiment=finetune_image_text`: `python -m tests.benchmarks.pictures KIND FOLDER`.

Kinds:
    digits: 1,797 handwritten digits of scikit-learn, each with its number word in six languages; 360 are the test.
    stamps: clip art with English captions, of the Debian package tuxpaint-stamps-default.
    emoji: pictures of the font of the Debian package fonts-noto-color-emoji with their Unicode names (needs fontTools).

Writes `FOLDER/pictures`, `FOLDER/train.csv` and `FOLDER/test.csv` with the columns `file` and `caption`. With --root,
the files of a Debian package are read from a folder that it was unpacked into (`dpkg -x PACKAGE.deb ROOT`). Stamps and
emoji can be written into one folder, one after the other; 150 captions are held out for the test in total.
"""

import argparse
import csv
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from framework.random import key

DIGITS = {
    "en": "zero one two three four five six seven eight nine",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "zh": "零 一 二 三 四 五 六 七 八 九",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
}
NUM_TEST_DIGITS = 360
STAMPS = "usr/share/tuxpaint/stamps"
EMOJI = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_TEST_SHARE = 0.08
"""Share of the distinct captions of stamps and emoji that are held out, about 150."""
_GLYPH_SIZE = 109
_FIRST_EMOJI = 0x2100

Row = tuple[str, str]


def write_digits(folder: Path) -> tuple[list[Row], list[Row]]:
    """Writes the digits; returns the rows of training and test: file and number word."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images)).tolist()
    splits: tuple[list[Row], list[Row]] = ([], [])
    for place, index in enumerate(order):
        name = f"digit_{index:04d}.png"
        pixels = np.clip(data.images[index] * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
        words = [words.split()[int(data.target[index])] for words in DIGITS.values()]
        splits[place < NUM_TEST_DIGITS].extend((name, word) for word in dict.fromkeys(words))
    return splits


def stamps(root: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yields name, caption and picture of each stamp."""
    for text in sorted((root / STAMPS).rglob("*.txt")):
        picture = text.with_suffix(".png")
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()
        if picture.exists() and caption and "symbols" not in text.relative_to(root / STAMPS).parts:
            yield "stamp_" + "_".join(picture.relative_to(root / STAMPS).parts), caption, Image.open(picture)


def emoji(root: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yields name, caption and picture of each emoji of one code point."""
    from fontTools.ttLib import TTFont

    font = ImageFont.truetype(str(root / EMOJI), _GLYPH_SIZE)
    for code in TTFont(root / EMOJI).getBestCmap():
        name = unicodedata.name(chr(code), "")
        is_picture = code >= _FIRST_EMOJI and unicodedata.category(chr(code)) in ("So", "Sk")
        if not name or not is_picture or "REGIONAL" in name or "MODIFIER" in name:
            continue
        picture = Image.new("RGB", (136, 128), (255, 255, 255))
        ImageDraw.Draw(picture).text((0, 0), chr(code), font=font, embedded_color=True)
        if np.asarray(picture).std() > 5:
            yield f"emoji_{code:x}.png", name.lower(), picture


def write_captioned(folder: Path, pictures: Iterator[tuple[str, str, Image.Image]]) -> tuple[list[Row], list[Row]]:
    """Writes pictures; a hash of the caption assigns each to training or test."""
    splits: tuple[list[Row], list[Row]] = ([], [])
    for name, caption, picture in pictures:
        picture.save(folder / name)
        splits[key(7, caption) * 2.0**-64 < _TEST_SHARE].append((name, caption))
    return splits


def main() -> None:
    """Writes the pictures and appends their rows to the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["digits", "stamps", "emoji"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"))
    given = parser.parse_args()
    pictures = given.folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    if given.kind == "digits":
        splits = write_digits(pictures)
    else:
        splits = write_captioned(pictures, {"stamps": stamps, "emoji": emoji}[given.kind](given.root))
    for split, rows in zip(("train", "test"), splits, strict=True):
        file = given.folder / f"{split}.csv"
        is_new = not file.exists()
        with file.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([("file", "caption")] * is_new + rows)
        print(f"{file}: {len(rows):,} rows of {given.kind} added")


if __name__ == "__main__":
    main()
