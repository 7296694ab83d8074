"""Classification of pictures: layout of sequences, splits, bad rows, and logits of published classifiers."""

import csv

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.testing import assert_close

from framework.data.examples.pictures import PictureTable
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.published.pretrained import load_pretrained
from framework.published.starting_head import fit_head
from framework.published.vision import PICTURE_TOKENIZER
from framework.runs.task_parts import build_model
from framework.tasks.sequence_classification.pictures import ImageClassificationTask
from tests.support.models import peers
from tests.support.models.loading import load_into

SIZES = [(8, 8), (12, 4), (5, 9)]
"""Widths and heights in pixels; with patches of 4 pixels 2 x 2, 1 x 3 and 2 x 1 patches."""
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a folder of pictures per class and a table that names them."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    rows = []
    for label in ("cat", "dog"):
        (folder / "classes" / label).mkdir(parents=True)
        for number, (width, height) in enumerate(SIZES):
            name = f"{label}/{number}.png"
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "classes" / name)
            rows.append((name, label, "a b" if number else "c d e f", number, "cat|dog" if number else label))
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "label", "text", "size", "all"), *rows])
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def sources(folder, task: ImageClassificationTask, tokenizer: Tokenizer, **changes):
    given = {"train": str(folder / "rows.csv"), "images": str(folder / "classes"), "image_column": "file"}
    return task.build_sources(PictureTable(**given | changes), tokenizer, seed=0)


def first_batch(source):
    indices = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(indices), indices, indices + 10), step=0)


def pixels(folder, name: str, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels of a picture scaled to whole patches."""
    with Image.open(folder / "classes" / name) as image:
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC) if image.size != size else image)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_picture_is_its_patches_with_a_class_token_if_it_is_pooled(folder, pooling, per_class):
    task = ImageClassificationTask(patch_size=4, pooling=pooling)
    changes = {"train": str(folder / "classes"), "images": None, "image_column": "path"} if per_class else {}
    source = sources(folder, task, Tokenizer.from_folder(PICTURE_TOKENIZER), **changes)["train"]
    batch, first = first_batch(source), pooling == "cls"
    assert task.labels == ("cat", "dog")
    assert batch.lengths == tuple(first + count for count in (4, 3, 2)) * 2
    assert batch.targets["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.input_ids.tolist() == [token for count in (4, 3, 2) * 2 for token in [2] * first + [0] * count]
    whole = pixels(folder, "cat/0.png", (8, 8))
    assert batch.patches[1].tolist() == whole[:4, 4:].ravel().tolist()
    assert batch.patch_tokens[:5].tolist() == [first, first + 1, first + 2, first + 3, 2 * first + 4]
    assert batch.patch_places[4:9].tolist() == [[0, 0], [0, 1], [0, 2], [0, 0], [1, 0]]
    assert batch.token_type_ids.sum() == 0


def test_with_fusion_the_text_comes_first_and_the_patches_are_segment_1(folder):
    task = ImageClassificationTask(patch_size=4, fusion="joint", max_length=5)
    source = sources(folder, task, Tokenizer.from_folder(folder), text_column="text")["train"]
    batch = first_batch(source)
    # c d e f is truncated to five tokens with [CLS] and [SEP].
    assert batch.input_ids[: batch.lengths[0]].tolist() == [2, 7, 8, 9, 3, 0, 0, 0, 0]
    assert batch.token_type_ids[: batch.lengths[0]].tolist() == [0] * 5 + [1] * 4
    assert batch.lengths == (9, 7, 6) * 2
    assert batch.patch_tokens[:5].tolist() == [5, 6, 7, 8, 13]
    assert task.fields == ("image", "text")


@pytest.mark.parametrize(("problem", "column"), [("regression", "size"), ("multi_label", "all")])
def test_the_problems_of_sequence_classification_are_shared(folder, problem, column):
    task = ImageClassificationTask(patch_size=4, problem=problem)
    source = sources(folder, task, Tokenizer.from_folder(PICTURE_TOKENIZER), label_column=column)["train"]
    labels = first_batch(source).targets["labels"].tolist()
    both = [1, 1]
    assert labels == ([0, 1, 2] * 2 if problem == "regression" else [[1, 0], both, both, [0, 1], both, both])


def test_rows_to_predict_are_the_sequences_of_training(folder):
    task = ImageClassificationTask(patch_size=4, images=str(folder / "classes"))
    tokenizer = Tokenizer.from_folder(PICTURE_TOKENIZER)
    trained = first_batch(sources(folder, task, tokenizer)["train"])
    rows = [Row(n, None, {"image": f"{label}/{n}.png"}) for label in ("cat", "dog") for n in range(3)]
    for row in rows:
        task.check_row(row, tokenizer)
    batch = first_batch(task.build_source(rows, tokenizer))
    assert torch.equal(batch.patches, trained.patches) and torch.equal(batch.input_ids, trained.input_ids)
    with pytest.raises(DataError, match=r"row 7.*'cat/9.png' does not exist"):
        task.check_row(Row(7, None, {"image": "cat/9.png"}), tokenizer)


def test_bad_rows_are_named(folder, tmp_path):
    tokenizer = Tokenizer.from_folder(PICTURE_TOKENIZER)
    (tmp_path / "rows.csv").write_text("file,label\ncat/0.png,cat\ncat/7.png,dog\n")
    bad = {"train": str(tmp_path / "rows.csv"), "images": str(folder / "classes")}
    with pytest.raises(DataError, match=r"rows.csv, row 2 \(line 3\): the picture 'cat/7.png' does not exist"):
        sources(folder, ImageClassificationTask(patch_size=4), tokenizer, **bad)
    with pytest.raises(ConfigError, match=r"task.fusion is None, but data.text_column is text"):
        sources(folder, ImageClassificationTask(patch_size=4), tokenizer, text_column="text")
    with pytest.raises(ConfigError, match=r"task.fusion is joint, but data.text_column is None"):
        sources(folder, ImageClassificationTask(patch_size=4, fusion="joint"), tokenizer)
    joint = ImageClassificationTask(patch_size=4, fusion="joint")
    with pytest.raises(ConfigError, match=r"picture_vocabulary has special tokens only"):
        sources(folder, joint, tokenizer, text_column="text")
    with pytest.raises(DataError, match=r"has 8 x 8 pixels. At most 50"):
        sources(folder, ImageClassificationTask(patch_size=4), tokenizer, max_pixels=50)


def test_all_rows_with_one_picture_belong_to_one_split(folder, tmp_path):
    lines = [f"{label}/{n}.png,{label},text {k}" for label in ("cat", "dog") for n in range(3) for k in range(20)]
    (tmp_path / "rows.csv").write_text("file,label,text\n" + "\n".join(lines) + "\n")
    data = PictureTable(
        train=str(tmp_path / "rows.csv"),
        images=str(folder / "classes"),
        image_column="file",
        text_column="label",
        label_column="text",
        validation_fraction=0.4,
    )
    splits = data.load().splits
    names = {split: {row.name for row in rows} for split, rows in splits.items()}
    assert names["train"] and names["validation"] and not names["train"] & names["validation"]


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_logits_equal_those_of_published_classifiers(folder, pooling, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    labels = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    if pooling == "cls":
        peer = transformers.ViTForImageClassification(transformers.ViTConfig(**vision, **labels))
    else:
        text = sizes | {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1}
        config = transformers.SiglipConfig(text_config=text, vision_config=vision, **labels)
        peer = transformers.SiglipForImageClassification(config)
    peers.randomize(peer, seed=0)
    peer.eval().save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    task = ImageClassificationTask(patch_size=4, pooling=pooling)
    source = sources(folder, task, Tokenizer.from_folder(weights.tokenizer_dir))["train"]
    assert (weights.head_kind, weights.task_record["pooling"]) == ("image_classification", pooling)
    with torch.device("cpu"):
        model = build_model(task, weights.config).to_empty(device="cpu")
    assert load_into(model, fit_head(weights, task.head_kind, task.to_record())) == []
    ours = model(first_batch(source))["logits"]
    for row, (label, number) in enumerate((label, number) for label in ("cat", "dog") for number in range(3)):
        size = [(8, 8), (12, 4), (4, 8)][number]
        image = torch.from_numpy(pixels(folder, f"{label}/{number}.png", size).copy()).float() / 127.5 - 1
        expected = peer(image.permute(2, 0, 1)[None], interpolate_pos_encoding=True).logits[0]
        assert_close(ours[row], expected[[1, 0]], atol=2e-5, rtol=2e-5)  # our labels are sorted
