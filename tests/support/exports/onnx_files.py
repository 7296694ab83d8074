"""Exports that are converted to ONNX, and conversions that are used again."""

from dataclasses import replace

import onnxruntime
import torch

from framework.batch import PackedBatch
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx import OnnxModel
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS


def exported(tmp_path, family, make_head, head_kind, tokenizer_dirs, pooling="cls", **record):
    config = replace(CONFIGS[family], num_layers=2 if family == "modernbert" else 1)
    model = random_model(config, make_head(config))
    folder = tmp_path / "export"
    record = {"pooling": pooling, **record}
    export_huggingface(folder, config, model.state_dict(), head_kind, tokenizer_dirs[family], record)
    (folder / "README.md").write_text("# A card\n")
    return folder


def converted(folder, fp32):
    """Writes a file that `write_onnx` wrote before, without another conversion."""
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(fp32)
    return OnnxModel(folder)


def scores(folder, inputs):
    """Returns the outputs of the file by name, given tensors of all of its inputs."""
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    assert {each.name for each in session.get_inputs()} == set(inputs)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()}), strict=True))


def padded(batch: PackedBatch, names):
    """Returns the inputs with these names for the sequences of a packed batch, padded to the longest."""
    lengths = torch.tensor(batch.lengths)
    mask = torch.arange(max(batch.lengths)) < lengths[:, None]
    of_batch = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
    inputs = {"attention_mask": mask.long()}
    for name, values in of_batch.items():
        if name in names:
            inputs[name] = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(
                mask, values[: lengths.sum()].long()
            )
    return inputs
