"""Tables with pictures: small pictures in an analysis, and their place in the page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from framework.data.reading.images import PictureFile, PictureFolder
from framework.tasks.examination import Gallery
from framework.tracking.analysis.galleries import gallery_tables, gallery_values
from framework.tracking.analysis.page import Section, render


@pytest.fixture
def pictures(tmp_path) -> list[PictureFile]:
    """A picture of 300 x 150 pixels and one of 8 x 8, both left red and right blue."""
    files = []
    for name, (width, height) in {"large.png": (300, 150), "<tiny>.png": (8, 8)}.items():
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
        Image.fromarray(pixels).save(tmp_path / name)
        files.append(PictureFolder(tmp_path).find("row", name))
    return files


def test_pictures_become_small_jpegs(pictures):
    gallery = Gallery("Worst", ["picture", "caption"], [(picture, "a caption") for picture in pictures])
    (values,) = gallery_values([gallery, Gallery("Empty", ["picture"], [])], 5)
    for (picture, caption), name, size in zip(
        values["rows"], ("large.png", "<tiny>.png"), ((96, 48), (96, 96)), strict=True
    ):
        assert picture["name"] == name and caption == "a caption"
        shown = Image.open(io.BytesIO(base64.b64decode(picture["jpeg"])))
        assert shown.size == size
        left, right = (np.asarray(shown)[20, column].astype(int) for column in (10, size[0] - 10))
        assert np.abs(left - (255, 0, 0)).max() < 30 and np.abs(right - (0, 0, 255)).max() < 30
    assert len(gallery_values([gallery], 1)[0]["rows"]) == 1 and gallery_values([gallery], 0) == []


def test_the_page_embeds_the_pictures_and_escapes_their_names(pictures):
    values = gallery_values([Gallery("Worst", ["picture", "rank"], [(pictures[1], "3")])], 5)
    page = render("run", None, {}, [Section("test", "Test", tables=gallery_tables(values))])
    assert f'src="data:image/jpeg;base64,{values[0]["rows"][0][0]["jpeg"]}"' in page
    assert 'alt="&lt;tiny&gt;.png"' in page and "<td class=number>3</td>" in page and "<tiny>" not in page
