"""Exports that are converted to ONNX, and conversions that are used again."""

from dataclasses import replace

from framework.exports.huggingface import export_huggingface
from framework.exports.onnx import OnnxModel
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS


def exported(tmp_path, family, make_head, head_kind, tokenizer_dirs, pooling="cls"):
    config = replace(CONFIGS[family], num_layers=2 if family == "modernbert" else 1)
    model = random_model(config, make_head(config))
    folder = tmp_path / "export"
    record = {"pooling": pooling}
    export_huggingface(folder, config, model.state_dict(), head_kind, tokenizer_dirs[family], record)
    (folder / "README.md").write_text("# A card\n")
    return folder


def converted(folder, fp32):
    """Writes a file that `write_onnx` wrote before, without another conversion."""
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(fp32)
    return OnnxModel(folder)
