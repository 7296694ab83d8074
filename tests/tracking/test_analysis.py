"""The rows and content of the error analysis, and readable pictures: 2 to 150 classes, in any script."""

import json
import re
import struct
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.image import imread

from framework.tasks.examination import (
    Confusion,
    Examination,
    ExaminedRow,
    ItemResults,
    count_confusions,
    default_examination,
)
from framework.tracking.analysis import fonts
from framework.tracking.analysis.content import (
    length_buckets,
    most_confused,
    read_analyses,
    worst_rows,
    write_analysis,
)
from framework.tracking.analysis.pictures import MOST_NUMBERED_LABELS, draw_analysis
from framework.tracking.analysis.report import draw_pictures, write_report
from tests.support.tracking.analyses import HOSTILE, analysis_of, labelled


def png_size(path: Path) -> tuple[int, int]:
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_the_worst_rows_are_wrong_ones_sorted_by_loss():
    rows = [
        ExaminedRow(1, loss, score) for loss, score in [(0.2, 1), (0.7, 0), (0.9, None), (0.7, 0), (3.0, 1), (2.0, 0)]
    ]
    assert worst_rows(rows) == [5, 2, 1, 3]


def test_without_losses_the_lowest_score_and_then_the_most_confident_come_first():
    rows = [ExaminedRow(1, None, s, c) for s, c in [(0.5, 0.9), (0.0, 0.6), (1.0, 0.9), (0.0, 0.8), (None, 0.9)]]
    assert worst_rows(rows) == [3, 1, 0]


def test_buckets_of_lengths_equal_those_of_a_loop():
    rows = [ExaminedRow(length=2 + index % 17, loss=float(index), score=index % 2) for index in range(100)]
    rows.append(ExaminedRow(length=500))  # ignored, because it has neither a score nor a loss
    buckets = length_buckets(rows)
    assert len(buckets) == 8
    assert sum(each["rows"] for each in buckets) == 100
    assert all(before["last"] < after["first"] for before, after in pairwise(buckets))
    for bucket in buckets:
        inside = [row for row in rows[:-1] if bucket["first"] <= row.length <= bucket["last"]]
        scores = [row.score for row in inside]
        assert bucket["rows"] == len(inside)
        assert bucket["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
        assert bucket["loss"] == pytest.approx(sum(row.loss for row in inside) / len(inside), abs=1e-6)
        share = sum(scores) / len(scores)
        assert bucket["score_error"] == pytest.approx(1.96 * (share * (1 - share) / len(scores)) ** 0.5, abs=1e-6)


def test_rows_of_one_length_are_one_bucket():
    (bucket,) = length_buckets([ExaminedRow(5, score=1.0)] * 90)
    assert (bucket["first"], bucket["last"], bucket["rows"], bucket["loss"]) == (5, 5, 90, None)


def test_confusions_are_counted_expected_label_first():
    pairs = [("a", "b"), ("a", "b"), ("b", "b"), ("c", "a"), ("a", "a"), ("?", "a")]
    confusion = count_confusions(pairs, ["a", "b", "c"])
    assert confusion.counts.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]
    kept = analysis_of(Examination([], confusion=confusion))["confusion"]
    assert most_confused(kept, 9) == [("a", "b", 2), ("c", "a", 1)]


def test_a_task_without_an_examination_shows_its_worst_items_with_their_tokens():
    results = ItemResults([0, 0, 0], np.array([0.1, 2.0, 1.0]), np.array([2, 3, 1]))
    predictions = [{"label": "x", "vector": [1, 2]}, {"label": "y", "vector": []}, {"label": "z", "vector": []}]
    kept = analysis_of(default_examination(results, predictions), 2, ("ab", "cde", "f"))
    assert [(each["text"], each["predicted"], each["loss"]) for each in kept["examples"]] == [
        ("cde", "label: y", 2.0),
        ("f", "label: z", 1.0),
    ]
    assert kept["confusion"] is kept["calibration"] is kept["score"] is None


@pytest.mark.parametrize("num_labels", [2, 6, MOST_NUMBERED_LABELS, MOST_NUMBERED_LABELS + 1, 150])
def test_matrices_of_2_to_150_classes_have_a_size_that_a_page_can_show(num_labels: int, tmp_path: Path):
    analysis = analysis_of(labelled([f"a rather long name of class {index}" for index in range(num_labels)], 600))
    pictures = {path.name: png_size(path) for path in draw_analysis(tmp_path, "test", analysis)}
    assert list(pictures) == ["test_confusion.png", "test_calibration.png", "test_lengths.png"]
    width, height = pictures["test_confusion.png"]
    assert 600 <= height <= width <= 1650
    for name in pictures:
        drawn = imread(tmp_path / "plots" / name)
        border = [drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]]
        assert all((line == 1.0).all() for line in border), f"a part of {name} is cut off"


@pytest.mark.parametrize("has_font", [True, False])
def test_names_in_chinese_and_with_a_dollar_are_drawn_without_a_warning(
    has_font: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    labels = ["好评", "差评", "$100 $"]
    if not has_font:
        monkeypatch.setattr(fonts, "_files", lambda: ())
    write_analysis(tmp_path, "test", analysis_of(labelled(labels)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_pictures(tmp_path)
        page = write_report(tmp_path).read_text(encoding="utf-8")
    is_numbered = "Numbers in the confusion matrix" in page
    assert is_numbered == (fonts.font_for(labels) is None)
    assert is_numbered or has_font
    assert not is_numbered or all(f"<td>{label}</td>" in page for label in labels)


def test_a_font_with_the_characters_is_chosen_and_one_that_draws_boxes_is_not():
    # matplotlib contains STIX, which has U+1D81, and Last Resort, which has a box for everything.
    font = fonts.font_for(["\u1d81 and letters"])
    assert font is not None and font.get_file() != findfont(FontProperties())
    assert 0x1D81 in FT2Font(font.get_file()).get_charmap()
    assert fonts.font_for(["\U0003fffd"]) is None
    assert fonts.font_for(["letters"]) == FontProperties()


def test_texts_are_escaped_and_the_page_needs_no_other_file(tmp_path: Path):
    rows = [ExaminedRow(3, 2.0, 0.0, 0.9, HOSTILE, HOSTILE, HOSTILE * 20, HOSTILE)]
    confusion = Confusion([HOSTILE, "b"], np.array([[1, 2], [0, 3]]))
    analysis = analysis_of(Examination(rows, HOSTILE, confusion)) | {"classes": [{"label": HOSTILE, "f1": 0.5}]}
    write_analysis(tmp_path, "test", analysis)
    summary = {"ended": "failed", "why": HOSTILE, "steps": 1, "max_steps": 2, "tokens": 3, "wall_seconds": 4.0}
    summary |= {"tokens_per_second": None, "last": {f"val/{HOSTILE}": None}, "best": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    draw_pictures(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    tags = re.findall(r"<(\w+)[^>]*>", page)
    assert "script" not in tags
    assert "onerror" not in re.sub(r"(&lt;|&gt;|&#x27;|&amp;)", "", "".join(re.findall(r"<[^>]*>", page)))
    assert page.count("&lt;script&gt;") >= 6
    assert "http" not in page and "url(" not in page and "@import" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3 and all(each.startswith("data:image/png;base64,") for each in sources)
    assert "prefers-color-scheme: dark" in page
    assert "…" in page  # the long text is truncated


def test_the_report_is_a_function_of_the_folder(tmp_path: Path):
    for name in ("zebra", "test", "validation"):
        write_analysis(tmp_path, name, analysis_of(labelled(["a", "b"])))
    assert list(read_analyses(tmp_path)) == ["validation", "test", "zebra"]
    pages = []
    for _ in range(2):
        draw_pictures(tmp_path)
        pages.append(write_report(tmp_path).read_bytes())
    assert pages[0] == pages[1]
    order = [pages[0].index(f'<section id="{name}">'.encode()) for name in ("validation", "test", "zebra")]
    assert order == sorted(order)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis", "plots", "report.html"]


def test_without_examples_no_text_is_kept(tmp_path: Path):
    write_analysis(tmp_path, "test", analysis_of(labelled(["a", "b"]), num_examples=0))
    kept = (tmp_path / "analysis" / "test.json").read_text(encoding="utf-8")
    assert "text " not in kept and json.loads(kept)["examples"] == []
    assert "worst" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_expected_and_predicted_numbers_are_drawn(tmp_path: Path):
    numbers = np.stack([np.arange(5000.0), np.arange(5000.0) + 1], axis=1)
    rows = [ExaminedRow(4, 1.0, expected="1", predicted="2", text="")] * 5000
    analysis = analysis_of(Examination(rows, numbers=numbers), texts=("abc",))
    assert analysis["numbers"]["predicted"][:2] == [1.0, 4.0]  # at most 2,000 points
    names = [path.name for path in draw_analysis(tmp_path, "validation", analysis)]
    assert names == ["validation_lengths.png", "validation_numbers.png"]
