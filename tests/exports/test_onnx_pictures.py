"""The ONNX file of pictures has the vectors of the packed encoder; a file with other vectors is removed."""

from dataclasses import replace

import numpy as np
import pytest

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import CheckpointError
from framework.exports import onnx_pictures
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx_pictures import export_picture_onnx
from framework.published.pretrained import load_pretrained
from framework.tasks.image_text.head import ImageTextHead
from framework.tasks.image_text.task import ImageTextTask
from framework.tasks.pooling import POOLINGS
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS


def exported(folder, family, task, tokenizer_dirs):
    config = replace(CONFIGS[family], num_layers=1, patch_size=2, patch_grid=6)
    model = random_model(config, ImageTextHead(POOLINGS[task.pooling], task.normalize, 10.0, None))
    export_huggingface(folder, config, model.state_dict(), task.head_kind, tokenizer_dirs[family], task.to_record())
    (folder / "README.md").write_text("# A card\n", encoding="utf-8")
    return model


def test_pictures_of_an_export(tmp_path, tokenizer_dirs):
    """`export_picture_onnx` compares the graph with the packed encoder and raises an error if they differ."""
    folder = tmp_path / "export"
    model = exported(folder, "roberta", ImageTextTask(patch_size=2), tokenizer_dirs)
    assert export_picture_onnx(folder) == folder / "onnx" / "pictures.onnx"
    assert "`embeddings`, one vector per picture" in (folder / "README.md").read_text(encoding="utf-8")
    read = load_pretrained(str(folder)).encoder
    for name, value in model.encoder.state_dict().items():
        if "patch_embeddings" in name:
            assert np.array_equal(read[name].numpy(), value.numpy())


def test_another_function_is_removed(tmp_path, tokenizer_dirs, monkeypatch):
    folder = tmp_path / "export"
    exported(folder, "bert", ImageTextTask(patch_size=2), tokenizer_dirs)
    monkeypatch.setattr(onnx_pictures, "_write", lambda file, model: file.write_bytes(b"graph"))
    monkeypatch.setattr(onnx_pictures, "_largest_difference", lambda *given: 0.5)
    with pytest.raises(CheckpointError, match=r"differ by 5\.0e-01"):
        export_picture_onnx(folder)
    assert not (folder / "onnx" / "pictures.onnx").exists()


def test_exports_of_other_tasks_have_no_pictures(tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS["bert"], ImageTextHead(POOLINGS["mean"], True, 10.0, None))
    export_huggingface(
        tmp_path / "export",
        CONFIGS["bert"],
        model.state_dict(),
        "embedding",
        tokenizer_dirs["bert"],
        {"pooling": "mean"},
    )
    assert export_picture_onnx(tmp_path / "export") is None
    assert Tokenizer.from_folder(tmp_path / "export").cls_id == 2
