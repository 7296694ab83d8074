"""Small pictures of stripes in two colours and of two shapes, with captions that name them; some have two captions."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {
    "red": (255, 0, 0),
    "green": (0, 200, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "pink": (255, 120, 180),
}
SIZES = {"wide": (12, 8), "tall": (8, 12)}
ROWS_OF = [
    (f"{size}_{left}_{right}.png", f"a {size} picture with {left} on the left and {right} on the right")
    for size in SIZES
    for left in COLORS
    for right in COLORS
]
TEXTS = [caption for _, caption in ROWS_OF]
OVERRIDES = [
    "task=image_text",
    "data=captioned_images",
    "task.patch_size=4",
    "task.max_patches=8",
    "task.max_length=24",
]
ROWS = [{"image": "pictures/wide_red_blue.png"}, {"image": "pictures/tall_pink_pink.png"}]
REFUSED = ("rows.csv, row 55 (line 56): the picture '../rows.csv' is outside of the folder pictures", "../rows.csv,a\n")


def write(folder: Path) -> list[str]:
    """Writes the pictures and the rows. The first five pictures have a second caption."""
    (folder / "pictures").mkdir(exist_ok=True)
    for name, _ in ROWS_OF:
        size, left, right = name.removesuffix(".png").split("_")
        width, height = SIZES[size]
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2], pixels[:, width // 2 :] = COLORS[left], COLORS[right]
        Image.fromarray(pixels).save(folder / "pictures" / name)
    second = [(name, caption.replace("a ", "one ", 1)) for name, caption in ROWS_OF[:4]]
    lines = [f"{name},{caption}\n" for name, caption in [*ROWS_OF, *second]]
    (folder / "rows.csv").write_text("image,text\n" + "".join(lines), encoding="utf-8")
    return ["data.train=rows.csv", "data.images=pictures", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds an invalid row."""
    with (folder / "rows.csv").open("a", encoding="utf-8") as file:
        file.write(REFUSED[1])
