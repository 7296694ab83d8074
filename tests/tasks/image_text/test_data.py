"""Rows of pictures and captions: splits, bad rows, the layout of sequences, and rows to predict."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.planning.collate import RoundedShape
from framework.data.planning.plan import StepSequences
from framework.data.reading.images import PatchGrid
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.datamodules.datamodule import EncoderDataModule
from framework.errors import ConfigError, DataError
from framework.tasks.image_text.data import CaptionedImages
from framework.tasks.image_text.features import pair_source
from framework.tasks.image_text.task import ImageTextTask
from tests.support.exports.small_exports import make_tokenizer

COLORS = {"red.png": (255, 0, 0), "blue.png": (0, 0, 255), "wide.png": (0, 255, 0)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with three pictures of one colour: two of 4 x 4 pixels, one of 8 x 4."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, color in COLORS.items():
        Image.new("RGB", (8 if name == "wide.png" else 4, 4), color).save(folder / name)
    frames = [Image.new("RGB", (4, 4), color) for color in ((1, 2, 3), (4, 5, 6))]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return folder


def table(folder: Path, *rows: str, **changes) -> CaptionedImages:
    file = folder / "rows.csv"
    file.write_text("\n".join(["file,caption", *rows]) + "\n", encoding="utf-8")
    return CaptionedImages(str(file), image_column="file", text_column="caption", **changes)


def test_rows_of_a_picture_are_in_one_split(folder):
    rows = [f"{name},caption {number}" for number in range(40) for name in ("red.png", "blue.png", "wide.png")]
    splits = table(folder, *rows, validation_fraction=0.5).load().splits
    names = {split: {row.picture.name for row in each} for split, each in splits.items()}
    assert names["train"] and names["validation"] and not names["train"] & names["validation"]
    assert {len(each) % 40 for each in splits.values()} == {0}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("red.png,", "row 2 (line 3): 'caption' is empty"),
        (",words", "row 2 (line 3): 'file' is empty"),
        ("none.png,words", "row 2 (line 3): the picture 'none.png' does not exist"),
        ("../red.png,words", "row 2 (line 3): the picture '../red.png' is outside of the folder"),
        ("rows.csv,words", "row 2 (line 3): 'rows.csv' cannot be read as a picture"),
        ("wide.png,words", "row 2 (line 3): the picture 'wide.png' has 8 x 4 pixels. At most 16 are read"),
    ],
)
def test_a_bad_row_is_named_or_skipped(folder, row, part):
    rows = ("red.png,words", row, "blue.png,words")
    with pytest.raises(DataError) as error:
        table(folder, *rows, max_pixels=16).load()
    assert part in str(error.value)
    read = table(folder, *rows, max_pixels=16, on_bad_row="skip").load()
    assert [each.picture.name for each in read.splits["train"]] == ["red.png", "blue.png"]
    assert read.facts["train"].num_skipped == 1 and part in read.facts["train"].skipped[0]


def test_animated_pictures_are_reported_once(folder):
    facts = table(folder, "moving.gif,one", "red.png,two", "moving.gif,three").load().facts
    assert facts["train"].warnings == ["Of 1 animated picture, such as moving.gif, only the first frame is used."]


def test_other_data_is_refused(folder):
    with pytest.raises(ConfigError, match=r"data\.max_pixels is 0"):
        table(folder, "red.png,a", max_pixels=0)
    with pytest.raises(ConfigError, match=r"'nowhere' does not exist"):
        table(folder, "red.png,a", images="nowhere").load()


def test_pairs_are_a_picture_and_then_its_caption(folder, tokenizer):
    data = table(folder, "wide.png,one two", "red.png,three", "wide.png,one  two")
    source = pair_source(data.load().splits["train"], ["loss"], tokenizer, PatchGrid(4, 4, 64), 8)
    assert len(source) == 3 and source.group_size == 2
    batch = source.build(StepSequences(np.zeros(2, int), np.array([1, 2]), np.array([5, 9])), 0)
    assert batch.sequence_ids.tolist() == [10, 11, 18, 19] and batch.counts == {"loss": 2.0}
    captions = [[int(each) for each in ids] for ids in tokenizer.encode_batch(["three", "one two"])]
    assert batch.lengths == (2, 2 + len(captions[0]), 3, 2 + len(captions[1]))
    second = 4 + len(captions[0])
    expected = [tokenizer.cls_id, 0, tokenizer.cls_id, *captions[0], tokenizer.sep_id, tokenizer.cls_id, 0, 0]
    assert batch.input_ids.tolist()[: len(expected)] == expected
    assert batch.patch_tokens.tolist() == [1, second + 1, second + 2]
    assert batch.patch_places.tolist() == [[0, 0], [0, 0], [0, 1]]
    red, green = (torch.tensor(COLORS[name], dtype=torch.uint8).repeat(16) for name in ("red.png", "wide.png"))
    assert torch.equal(batch.patches, torch.stack([red, green, green]))
    # Rows 0 and 2 have the same picture and the same caption.
    assert batch.targets["queries"].tolist() == [1, 1, 0, 0]
    assert batch.targets["texts"].tolist() == [1, 3, 0, 2]


def test_a_step_without_pairs_has_no_patches(folder, tokenizer):
    rows = table(folder, "wide.png,one two").load().splits["train"]
    source = pair_source(rows, ["loss"], tokenizer, PatchGrid(4, 4, 64), 8)
    none = np.zeros(0, dtype=int)
    assert source.build(StepSequences(none, none, none), 0).patches.shape == (0, 48)


def test_the_fingerprint_follows_the_pictures(folder, tokenizer):
    rows = table(folder, "wide.png,one two", "red.png,three").load().splits["train"]

    def fingerprint(rows, patch_size=4):
        return pair_source(rows, ["loss"], tokenizer, PatchGrid(patch_size, 4, 64), 8).fingerprint

    larger = [replace(rows[0], picture=replace(rows[0].picture, num_bytes=1)), rows[1]]
    assert fingerprint(rows) == fingerprint(list(rows))
    assert len({fingerprint(rows), fingerprint(larger), fingerprint(rows, 2)}) == 3


def test_ranks_workers_and_resume_see_the_same_patches(folder, tokenizer):
    """Patches by sequence id: of one rank, and of two ranks that start at step 2 with loader processes."""
    rows = [f"{name},caption {number}" for number in range(6) for name in COLORS]
    source = pair_source(table(folder, *rows).load().splits["train"], ["loss"], tokenizer, PatchGrid(4, 4, 64), 8)

    def steps(num_ranks: int, num_workers: int, start: int) -> dict[int, dict[int, list[list[int]]]]:
        seen: dict[int, dict[int, list[list[int]]]] = {}
        for rank in range(num_ranks):
            data = EncoderDataModule(
                {"train": source}, 3, 5, 40, 6, False, num_ranks, rank, num_workers=num_workers, shape=RoundedShape()
            )
            data.set_start(start)
            for step in data.train_dataloader():
                for batch in step.micro_batches:
                    owner = torch.bucketize(batch.patch_tokens, batch.cu_seqlens[1:], right=True)
                    for sequence, patch in zip(owner.tolist(), batch.patches.tolist(), strict=True):
                        if sequence < batch.num_sequences:  # others are fillers
                            own = seen.setdefault(step.step, {}).setdefault(int(batch.sequence_ids[sequence]), [])
                            own.append(patch)
        return seen

    whole = steps(1, 0, 0)
    assert sorted(whole) == list(range(6)) and sum(map(len, whole.values())) == 5 + 5 + 5 + 3 + 5 + 5
    assert steps(2, 1, 2) == {step: whole[step] for step in range(2, 6)}


def test_rows_to_predict_have_a_picture_or_a_text(folder, tokenizer):
    task = ImageTextTask(patch_size=4, images=str(folder))
    rows = [Row(1, None, {"image": "wide.png"}), Row(2, None, {"text": "one two"})]
    for row in rows:
        task.check_row(row, tokenizer)
    source = task.build_source(rows, tokenizer)
    assert source.lengths(np.zeros(2), np.arange(2)).tolist() == [3, 2 + len(tokenizer.encode_batch(["one two"])[0])]
    with pytest.raises(DataError, match=r"row 3: the picture 'none\.png' does not exist"):
        task.check_row(Row(3, None, {"image": "none.png"}), tokenizer)
