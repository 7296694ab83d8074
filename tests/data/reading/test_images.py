"""Tests of pictures: sizes from headers, conversion to RGB, division into patches, and bad files."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from framework.data.reading.images import PatchGrid, PictureFolder, read_patches
from framework.errors import ConfigError, DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def read(folder, name: str, rows: int, columns: int, patch: int = 1) -> np.ndarray:
    return read_patches(PictureFolder(folder).find("rows.csv, row 2", name), rows, columns, patch)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (2, 2)),
        ((8, 8), (1, 1)),  # never enlarged beyond one patch
        ((224, 224), (14, 14)),
        ((640, 480), (12, 16)),  # 192 of 196 patches, the ratio is kept
        ((480, 640), (16, 12)),
        ((10_000, 10), (1, 64)),  # at most 64 columns
        ((40, 24), (2, 2)),  # half a patch is rounded to the even side
    ],
)
def test_grids_keep_the_aspect_ratio(size, expected):
    assert PatchGrid(16, 196, 64).of(*size) == expected


def test_grids_never_exceed_the_limits():
    random = np.random.default_rng(0)
    for width, height in np.exp(random.uniform(0, 9, (2000, 2))).astype(int).tolist():
        for most in (1, 5, 196):
            rows, columns = PatchGrid(16, most, 64).of(width, height)
            assert rows >= 1 and columns >= 1 and rows * columns <= most and max(rows, columns) <= 64


def test_patches_are_cut_row_by_row(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    patches = read(tmp_path, "a.png", 2, 3, 2)
    assert patches.shape == (6, 12) and patches.dtype == np.uint8
    assert np.array_equal(patches[0], pixels[:2, :2].reshape(-1))
    assert np.array_equal(patches[1], pixels[:2, 2:4].reshape(-1))
    assert np.array_equal(patches[3], pixels[2:, :2].reshape(-1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_turned_as_their_orientation_says(tmp_path, kind, orientation):
    """The stored picture is 32 x 16, red on the left and blue on the right."""
    stored = Image.new("RGB", (32, 16), RED)
    stored.paste(BLUE, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored.save(tmp_path / "a", kind, exif=exif, **options)
    file = PictureFolder(tmp_path).find("row", "a")
    is_turned = orientation in (6, 8)
    assert (file.width, file.height) == ((16, 32) if is_turned else (32, 16))
    rows, columns = (2, 1) if is_turned else (1, 2)
    first, second = read_patches(file, rows, columns, 16).reshape(2, 256, 3)[:, 136].astype(int)
    # 6: the left becomes the top; 8: it becomes the bottom; 3: it becomes the right.
    expected = (RED, BLUE) if orientation in (1, 6) else (BLUE, RED)
    assert np.abs(first - expected[0]).max() < 6 and np.abs(second - expected[1]).max() < 6


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), (255, 255, 255)),  # transparent: white
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.fromarray(np.full((1, 1), 51 * 257, np.uint16)), (51, 51, 51)),  # 16 bits
        (Image.new("RGB", (1, 1), GREEN).quantize(4), GREEN),
    ],
    ids=["alpha", "half", "grey_alpha", "grey", "bits", "sixteen", "palette"],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, picture, expected):
    picture.save(tmp_path / "a.png")
    assert tuple(read(tmp_path, "a.png", 1, 1)[0]) == expected


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    pixel = read(tmp_path, "a.jpg", 1, 1, 16).reshape(256, 3)[100].astype(int)
    assert np.abs(pixel - RED).max() < 6


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    file = PictureFolder(tmp_path).find("row", "a.gif")
    assert file.is_animated and tuple(read_patches(file, 1, 1, 1)[0]) == RED


def test_large_pictures_are_scaled(tmp_path):
    gradient = np.linspace(0, 255, 400).astype(np.uint8)[None, :, None].repeat(300, 0).repeat(3, 2)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(gradient).save(tmp_path / name)
        pixels = read(tmp_path, name, 3, 4, 8).reshape(3, 4, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(24, 32, 3)
        expected = (np.arange(32) + 0.5) / 32 * 255
        assert np.abs(pixels[12, :, 0] - expected).max() < 4


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in some bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_files_are_named_with_their_row(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "bomb.png").write_bytes(bomb())
    Image.new("RGB", (20, 20)).save(folder / "large.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:2000])
    pictures = PictureFolder(folder, max_pixels=300)
    for name, part in [
        ("../outside.png", "is outside of the folder"),
        (str(folder / "large.png"), "is outside of the folder"),
        ("link.png", "is outside of the folder"),
        ("missing.png", "does not exist"),
        ("nu\0l.png", "does not exist"),
        (".", "does not exist"),
        ("text.png", "cannot be read as a picture"),
        ("bomb.png", "has more pixels than Pillow reads"),
        ("large.png", "has 20 x 20 pixels. At most 300 are read"),
    ]:
        with pytest.raises(DataError, match=r"rows\.csv, row 7: ") as error:
            pictures.find("rows.csv, row 7", name)
        assert part in str(error.value)
    damaged = PictureFolder(folder).find("rows.csv, row 8", "cut.png")
    with pytest.raises(DataError, match=r"rows\.csv, row 8: 'cut.png' cannot be read as a picture \(.*truncated"):
        read_patches(damaged, 4, 4, 16)


def test_a_picture_that_changed_is_reported(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    file = PictureFolder(tmp_path).find("row", "a.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="it had 8 x 8 pixels"):
        read_patches(file, 1, 1, 8)


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.images"):
        PictureFolder(tmp_path / "nowhere")
