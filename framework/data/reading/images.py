"""Reads pictures with Pillow: sizes from the headers of files, and pixels cut into square patches.

Pictures keep their aspect ratio and are never enlarged. Transparent pixels become white, and every picture becomes RGB
with 8 bits per channel: grey, palette, CMYK and 16-bit pictures are converted.
"""

import importlib.util
import io
import os
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from framework.errors import ConfigError, DataError, counted

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are read. Fewer formats are fewer decoders that a malicious file can reach."""

MAX_PIXELS = 50_000_000
"""Default limit of the pixels of a picture, against decompression bombs."""

_ORIENTATION = 0x0112
_FIRST_TURNED = 5
"""First EXIF orientation that exchanges width and height."""
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_EIGHT_OF_SIXTEEN = 257
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_DRAFT = 2
"""A JPEG is decoded at a reduced size of at least twice the final size, which is faster and no less sharp."""

_THUMBNAIL_SIDE = 96
"""Longer side of a thumbnail in pixels."""

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, MemoryError)
"""Errors that Pillow raises for damaged pictures."""


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Division of pictures into patches.

    Attributes:
        patch_size: Edge of a patch in pixels.
        max_patches: Most patches of a picture; larger pictures are scaled down.
        max_side: Most rows and most columns of patches.
    """

    patch_size: int
    max_patches: int
    max_side: int

    @property
    def patch_dim(self) -> int:
        """Returns the number of values of a patch."""
        return 3 * self.patch_size**2

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Returns the rows and columns of a picture of this size in pixels, at least 1 each.

        The picture is scaled to whole patches, so its aspect ratio changes by at most half a patch on each side.
        """
        edge = self.patch_size
        scale = min(1.0, edge * sqrt(self.max_patches / (width * height)), edge * self.max_side / max(width, height))
        exact = scale * height / edge, scale * width / edge
        rows, columns = (max(1, round(side)) for side in exact)
        if rows * columns > self.max_patches:
            rows, columns = (max(1, int(side)) for side in exact)
        return min(rows, self.max_patches // min(columns, self.max_patches)), min(columns, self.max_patches)


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One picture, known from its header.

    Attributes:
        path: Path without links.
        name: Path as the row gives it.
        location: File and row that name the picture, for messages.
        width: Width in pixels as shown, after the EXIF orientation.
        height: Height in pixels as shown.
        num_bytes: Size of the file.
        is_animated: True if only the first of several frames is used.
    """

    path: str
    name: str
    location: str
    width: int
    height: int
    num_bytes: int
    is_animated: bool


class PictureFolder:
    """Folder that contains all pictures of a table.

    Args:
        folder: Folder; names of pictures are relative to it.
        max_pixels: Most pixels of a picture.

    Raises:
        ConfigError: Pillow is not installed, or there is no such folder.
    """

    def __init__(self, folder: Path | str, max_pixels: int = MAX_PIXELS) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise ConfigError(
                "Pictures are read with Pillow, which is not installed. Install it with `pip install -e '.[image]'`."
            )
        if not Path(folder).is_dir():
            raise ConfigError(
                f"The folder of pictures {str(folder)!r} does not exist. Pictures are named relative to it. Set "
                "data.images (in prediction task.images) to the folder."
            )
        self.folder = Path(folder)
        self.max_pixels = max_pixels
        self._root = os.path.realpath(folder)
        self._found: dict[str, PictureFile] = {}

    def find(self, location: str, name: str) -> PictureFile:
        """Reads the header of a picture.

        Args:
            location: File and row, for messages.
            name: Path of the picture, relative to the folder.

        Raises:
            DataError: The path leaves the folder, or there is no such file, or it is no picture or has too many pixels.
        """
        if name not in self._found:
            self._found[name] = self._read_header(location, name, self._resolve(location, name))
        return self._found[name]

    def _resolve(self, location: str, name: str) -> str:
        try:
            path = os.path.realpath(os.path.join(self._root, name))
            is_inside = not os.path.isabs(name) and os.path.commonpath([self._root, path]) == self._root
        except ValueError:  # a null byte
            is_inside, path = True, ""
        if not is_inside:
            raise DataError(
                f"{location}: the picture {name!r} is outside of the folder {self.folder}. Paths are relative to the "
                "folder and stay in it, links included. Correct the path, or copy the picture into the folder."
            )
        if not os.path.isfile(path):
            raise DataError(
                f"{location}: the picture {name!r} does not exist in {self.folder}. Each row needs a picture. Correct "
                "the path or the folder, or remove the row."
            )
        return path

    def _read_header(self, location: str, name: str, path: str) -> PictureFile:
        from PIL.Image import DecompressionBombError

        try:
            with _opened(path) as image:
                width, height = image.size
                if _orientation(image) >= _FIRST_TURNED:
                    width, height = height, width
                is_animated = bool(getattr(image, "is_animated", False))
        except DecompressionBombError:
            raise self._too_large(location, name, "more pixels than Pillow reads") from None
        except _DAMAGE as error:
            raise _unreadable(location, name, error) from error
        if width * height > self.max_pixels:
            raise self._too_large(location, name, f"{width} x {height} pixels")
        return PictureFile(path, name, location, width, height, os.path.getsize(path), is_animated)

    def _too_large(self, location: str, name: str, size: str) -> DataError:
        return DataError(
            f"{location}: the picture {name!r} has {size}. At most {self.max_pixels:,} are read, because a small file "
            "can fill the memory. Scale it down, or raise data.max_pixels."
        )


def read_patches(picture: PictureFile, rows: int, columns: int, patch_size: int) -> np.ndarray:
    """Decodes a picture, scales it to whole patches, and cuts it.

    Args:
        picture: Picture.
        rows: Rows of patches.
        columns: Columns of patches.
        patch_size: Edge of a patch in pixels.

    Returns:
        (rows * columns, patch_dim) uint8, patches row by row, the values of each in the order row, column, channel.

    Raises:
        DataError: The picture is damaged, or has changed since its header was read.
    """
    from PIL.Image import DecompressionBombError

    try:
        pixels = _pixels(picture, columns * patch_size, rows * patch_size)
    except (DecompressionBombError, *_DAMAGE) as error:
        raise _unreadable(picture.location, picture.name, error) from error
    cut = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(cut).reshape(rows * columns, -1)


def _pixels(picture: PictureFile, width: int, height: int) -> np.ndarray:
    """Returns (height, width, 3) uint8 pixels of a picture scaled to this size."""
    from PIL.Image import Resampling, Transpose

    turns = dict(
        enumerate(
            (
                *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
                *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
            ),
            start=2,
        )
    )
    with _opened(picture.path) as image:
        orientation = _orientation(image)
        is_turned = orientation >= _FIRST_TURNED
        size = (height, width) if is_turned else (width, height)
        shown = image.size[::-1] if is_turned else image.size
        if shown != (picture.width, picture.height):
            raise ValueError(f"it had {picture.width} x {picture.height} pixels when its header was read")
        image.draft("RGB", (_DRAFT * size[0], _DRAFT * size[1]))
        scaled = _as_rgb(image)
        if scaled.size != size:
            scaled = scaled.resize(size, Resampling.BICUBIC)
        if orientation in turns:
            scaled = scaled.transpose(turns[orientation])
        return np.asarray(scaled)


def _as_rgb(image: "Picture") -> "Picture":
    """Converts a picture of any mode to RGB on a white background."""
    from PIL import Image

    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64) // _EIGHT_OF_SIXTEEN
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _opened(path: str) -> "Picture":
    from PIL import Image

    with warnings.catch_warnings():
        # The limit of this module replaces that of Pillow, which warns at 89 million pixels.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _orientation(image: "Picture") -> int:
    """Returns the EXIF orientation, 1 for none. Pillow turns TIFF files itself.

    `Image.getexif` is not used, because it decodes a whole PNG file.
    """
    from PIL import Image

    raw = image.info.get("exif")
    if image.format == "TIFF" or not raw:
        return 1
    exif = Image.Exif()
    try:
        exif.load(raw)
        value = exif.get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _unreadable(location: str, name: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{location}: {name!r} cannot be read as a picture ({reason}). Pictures are files of the formats "
        f"{', '.join(FORMATS)}. Replace the file, or remove the row."
    )


def thumbnail(picture: PictureFile) -> bytes:
    """Returns a JPEG file of a picture scaled to at most 96 pixels; tiny pictures are enlarged by whole factors.

    Raises:
        DataError: The picture is damaged.
    """
    from PIL import Image

    scale = _THUMBNAIL_SIDE / max(picture.width, picture.height)
    width, height = (max(1, round(side * min(1.0, scale))) for side in (picture.width, picture.height))
    pixels = Image.fromarray(read_patches(picture, height, width, 1).reshape(height, width, 3))
    file = io.BytesIO()
    factor = max(1, int(scale))
    pixels.resize((width * factor, height * factor), Image.Resampling.NEAREST).save(file, "JPEG", quality=85)
    return file.getvalue()


def animation_warnings(pictures: Iterable[PictureFile]) -> list[str]:
    """Returns one warning if some of the pictures are animated."""
    animated = sorted({picture.name for picture in pictures if picture.is_animated})
    if not animated:
        return []
    return [f"Of {counted(len(animated), 'animated picture')}, such as {animated[0]}, only the first frame is used."]
